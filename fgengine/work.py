"""What an engine has computed and how long it took: sums that a cost model can be held against. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from fgengine.clock import Clock
from fgengine.cost import CostModel, StepShape
from fgengine.plan import StepPlan


@dataclass(slots=True)
class Work:
    """Sums over the steps so far. The cost model is linear, so sums are all it needs."""

    work_steps: int = 0
    work_prefill_requests: int = 0
    work_prefill_tokens: int = 0
    work_prefill_pairs: int = 0
    work_decode_requests: int = 0
    work_decode_context: int = 0
    """As in ``StepShape``."""
    model_seconds: float = 0.0
    """In the runner."""
    engine_seconds: float = 0.0
    """In the rest of the steps: scheduling, and taking in their results."""
    between_seconds: float = 0.0
    """Between one step and the next while there was work: messages in and out.

    Where steps overlap, of both only what the runner waited for: the rest passed while it computed.
    """
    copy_wait_seconds: float = 0.0
    """In which the device had nothing to run, because every request waited for a copy of its KV blocks.

    In none of the three above. Copies made while a step runs delay requests, not the device: they are not
    in here.
    """

    def add(
        self, plan: StepPlan, model_seconds: float, step_seconds: float, between_seconds: float = 0.0
    ) -> None:
        """Of ``step_seconds``, after ``between_seconds`` without a step, so much was spent in the runner."""
        shape = StepShape.of_plan(plan)
        self.work_steps += 1
        self.work_prefill_requests += shape.prefill_requests
        self.work_prefill_tokens += shape.prefill_tokens
        self.work_prefill_pairs += shape.prefill_pairs
        self.work_decode_requests += shape.decode_requests
        self.work_decode_context += shape.decode_context
        wall = step_seconds + between_seconds
        model = min(model_seconds, wall)  # the device has a clock of its own
        between = min(between_seconds, wall - model)
        self.model_seconds += model
        self.between_seconds += between
        self.engine_seconds += wall - model - between

    @property
    def seconds(self) -> float:
        """That the steps took, the time between them included: all the time in which there was work, less
        ``copy_wait_seconds``, in which no step could run."""
        return self.model_seconds + self.engine_seconds + self.between_seconds

    def predicted_seconds(self, cost: CostModel) -> float:
        """What the cost model says of the same steps."""
        sums = StepShape(
            self.work_prefill_requests,
            self.work_prefill_tokens,
            self.work_prefill_pairs,
            self.work_decode_requests,
            self.work_decode_context,
        )
        return cost.step_seconds(sums) + cost.step * (self.work_steps - 1)


class StepTimer:
    """Charges an engine's time to ``work``: to its steps, to waits for copies, and to what lies between."""

    def __init__(self, work: Work, clock: Clock) -> None:
        self._work = work
        self._clock = clock
        self._began = 0.0
        """The step that is being made."""
        self._left_at: float | None = None
        """When the last step or wait for a copy ended, if there was more to do; where none has yet, when the
        first step began."""

    def begin(self) -> None:
        """The engine begins to make a step. Where it then only launches one, the next call of ``begin``
        follows."""
        self._began = self._clock.now()
        if self._left_at is None:
            self._left_at = self._began

    def step_ended(self, plan: StepPlan, model_seconds: float, *, more: bool) -> None:
        """``more``: whether there is more to do."""
        ended = self._clock.now()
        self._work.add(plan, model_seconds, ended - self._began, self._between)
        self._left_at = ended if more else None

    def wait_ended(self, waited_from: float, *, more: bool) -> None:
        """Nothing could run before a copy was done. Charged to copies only where a request waits: blocks of
        requests that are gone are waited for as well."""
        self._work.between_seconds += self._between
        self._left_at = None
        if more:
            ended = self._left_at = self._clock.now()
            self._work.engine_seconds += waited_from - self._began
            self._work.copy_wait_seconds += ended - waited_from

    def idle(self) -> None:
        """There was nothing to do."""
        self._left_at = None

    @property
    def _between(self) -> float:
        return 0.0 if self._left_at is None else self._began - self._left_at
