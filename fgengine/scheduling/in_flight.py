"""The steps that were planned and whose results have not come yet. Pure."""

from __future__ import annotations

from collections import deque

from fgengine.plan import StepPlan
from fgengine.request import Phase, Request


class InFlight:
    """One step between its plan and its result; two where the next is planned while the last still runs.

    Without overlap everything in here is over when the result is taken in.
    """

    def __init__(self) -> None:
        self._plans: deque[StepPlan] = deque()
        """The earliest first."""
        self._phase_changes: list[tuple[Request, Phase, bool]] = []
        """Of the last plan: who enters which phase, and whether it is preempted with that."""
        self.not_applied: StepPlan | None = None
        """The last plan, until its effect on its requests has been written into them."""
        self.ending: set[str] = set()
        """Requests whose last token is being computed: they hold no KV and are in no further plan."""

    def __bool__(self) -> bool:
        return bool(self._plans)

    def add(self, plan: StepPlan) -> None:
        self._plans.append(plan)
        self.not_applied = plan

    def take(self, step: int) -> StepPlan:
        """The earliest plan. Raises RuntimeError where that is not the one of this step."""
        if not self._plans or self._plans[0].step != step:
            raise RuntimeError(f"a result of step {step} came, but that step is not planned")
        return self._plans.popleft()

    def change_phase(self, request: Request, phase: Phase, *, preempted: bool = False) -> None:
        """The request enters the phase when the step planned last begins."""
        self._phase_changes.append((request, phase, preempted))

    def begin_last(self, now: float) -> int:
        """The step planned last begins: requests enter their phases. How many are preempted by it."""
        preemptions = 0
        for request, phase, preempted in self._phase_changes:
            if request.finish_reason is None:
                request.enter(phase, now)
                if preempted:
                    request.preemptions += 1
                    preemptions += 1
        self._phase_changes.clear()
        return preemptions
