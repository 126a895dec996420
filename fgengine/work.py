"""The work an engine has done and its duration, as sums to compare with a cost model. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from fgengine.clock import Clock
from fgengine.cost import CostModel, StepShape
from fgengine.plan import StepPlan


@dataclass(slots=True)
class Work:
    """Sums over all steps so far: their shapes (as in ``StepShape``) and their times.

    A linear cost model needs no more than sums to predict the seconds of all steps. If steps overlap,
    ``engine_seconds`` and ``between_seconds`` count only the time in which the device waited.
    """

    work_steps: int = 0
    work_prefill_requests: int = 0
    work_prefill_tokens: int = 0
    work_prefill_pairs: int = 0
    work_decode_requests: int = 0
    work_decode_context: int = 0
    model_seconds: float = 0.0
    """Seconds in the runner."""
    engine_seconds: float = 0.0
    """Seconds in the rest of the steps: scheduling and processing of results."""
    between_seconds: float = 0.0
    """Seconds between steps while there was work: messages in and out."""
    copy_wait_seconds: float = 0.0
    """Seconds in which the device was idle because every request waited for a copy of its KV.

    The three fields above do not include them. Copies made during a step do not count here, because the
    device is not idle then.
    """

    def add(
        self, plan: StepPlan, model_seconds: float, step_seconds: float, between_seconds: float = 0.0
    ) -> None:
        """Add one step.

        Args:
            model_seconds: time in the runner.
            step_seconds: duration of the complete step, including the runner's time.
            between_seconds: time between the last step and this one.
        """
        shape = StepShape.of_plan(plan)
        self.work_steps += 1
        self.work_prefill_requests += shape.prefill_requests
        self.work_prefill_tokens += shape.prefill_tokens
        self.work_prefill_pairs += shape.prefill_pairs
        self.work_decode_requests += shape.decode_requests
        self.work_decode_context += shape.decode_context
        wall = step_seconds + between_seconds
        model = min(model_seconds, wall)  # measured with the device's clock, so it may exceed the wall time
        between = min(between_seconds, wall - model)
        self.model_seconds += model
        self.between_seconds += between
        self.engine_seconds += wall - model - between

    @property
    def seconds(self) -> float:
        """Seconds of all steps and between them: the time with work, without ``copy_wait_seconds``."""
        return self.model_seconds + self.engine_seconds + self.between_seconds

    def predicted_seconds(self, cost: CostModel) -> float | None:
        """Predict the seconds of the same steps with the cost model.

        Returns None if the cost model has a maximum: its seconds depend on each step, not only on sums.
        """
        if not cost.is_linear:
            return None
        sums = StepShape(
            self.work_prefill_requests,
            self.work_prefill_tokens,
            self.work_prefill_pairs,
            self.work_decode_requests,
            self.work_decode_context,
        )
        return cost.step_seconds(sums) + cost.step * (self.work_steps - 1)


class StepTimer:
    """Measures an engine's time and adds it to ``work``: steps, time between steps, waits for copies.

    The engine calls ``begin``, and then ``step_ended``, ``wait_ended`` or ``idle``. If it only launches an
    overlapping step, the next call is ``begin`` again.
    """

    def __init__(self, work: Work, clock: Clock) -> None:
        self._work = work
        self._clock = clock
        self._began = 0.0
        """When the current step began."""
        self._left_at: float | None = None
        """When the last step or wait for a copy ended; before the first one ends, when it began. None: no
        work was left."""

    def begin(self) -> None:
        """Record that a step begins."""
        self._began = self._clock.now()
        if self._left_at is None:
            self._left_at = self._began

    def step_ended(self, plan: StepPlan, model_seconds: float, *, more: bool) -> None:
        """Record that a step has ended; ``more``: whether work is left."""
        ended = self._clock.now()
        self._work.add(plan, model_seconds, ended - self._began, self._between)
        self._left_at = ended if more else None

    def wait_ended(self, waited_from: float, *, more: bool) -> None:
        """Record that a wait for a copy, begun at ``waited_from``, has ended.

        ``more``: whether a request is unfinished. If none is, the wait was for the blocks of ended requests,
        and it is not added to ``copy_wait_seconds``.
        """
        self._work.between_seconds += self._between
        self._left_at = None
        if more:
            ended = self._left_at = self._clock.now()
            self._work.engine_seconds += waited_from - self._began
            self._work.copy_wait_seconds += ended - waited_from

    def idle(self) -> None:
        """Record that there was no work."""
        self._left_at = None

    @property
    def _between(self) -> float:
        return 0.0 if self._left_at is None else self._began - self._left_at
