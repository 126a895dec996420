"""A simulated runner: its steps take the time that the cost model predicts, on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable

from fgengine.clock import VirtualClock
from fgengine.cost import CostModel, StepShape
from fgengine.plan import StepPlan, StepResult


class SimulatedRunner:
    """A runner that computes nothing; every token is 0. Implements ``Runner``."""

    def __init__(self, cost: CostModel, clock: VirtualClock) -> None:
        self.cost = cost
        self.clock = clock

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        """Return a function that executes the step."""
        return lambda: self.execute(plan)

    def execute(self, plan: StepPlan) -> StepResult:
        """Advance the clock by the step's predicted time and return zeros as tokens."""
        seconds = self.cost.step_seconds(StepShape.of_plan(plan))
        self.clock.advance(seconds)
        tokens = {item.request.id: 0 for item in plan.items if item.yields_token}
        return StepResult(plan.step, seconds, tokens)
