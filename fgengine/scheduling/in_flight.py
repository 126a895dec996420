"""The steps that are planned and have no results yet. Pure."""

from __future__ import annotations

from collections import deque

from fgengine.plan import StepPlan
from fgengine.request import Phase, Request


class InFlight:
    """The plans without a result: one step, or two if the next step is planned while the last one still runs.

    Without overlap it is empty again once the step's result is processed.
    """

    def __init__(self) -> None:
        self._plans: deque[StepPlan] = deque()
        """Earliest first."""
        self._phase_changes: list[tuple[Request, Phase, bool]] = []
        """Phase changes of the last plan: request, new phase, whether the request is preempted."""
        self.not_applied: StepPlan | None = None
        """The last plan, until its effect has been written into its requests."""
        self.ending: set[str] = set()
        """Ids of requests whose last token is being computed; they hold no KV and enter no further plan."""

    def __bool__(self) -> bool:
        return bool(self._plans)

    def add(self, plan: StepPlan) -> None:
        """Add the plan of the next step."""
        self._plans.append(plan)
        self.not_applied = plan

    def take(self, step: int) -> StepPlan:
        """Remove and return the earliest plan. Raises RuntimeError if it is not the plan of ``step``."""
        if not self._plans or self._plans[0].step != step:
            raise RuntimeError(f"got the result of step {step}, but that is not the next planned step")
        return self._plans.popleft()

    def change_phase(self, request: Request, phase: Phase, *, preempted: bool = False) -> None:
        """Record that the request enters ``phase`` when the last planned step begins."""
        self._phase_changes.append((request, phase, preempted))

    def begin_last(self, now: float) -> int:
        """Begin the last planned step: apply its phase changes. Returns the number of preemptions."""
        preemptions = 0
        for request, phase, preempted in self._phase_changes:
            if request.finish_reason is None:
                request.enter(phase, now)
                if preempted:
                    request.preemptions += 1
                    preemptions += 1
        self._phase_changes.clear()
        return preemptions
