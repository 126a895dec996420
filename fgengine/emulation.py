"""A device that is not here, in real time: its steps take as long as its analytic profile predicts.

Nothing is computed, and neither weights nor torch are needed. The scheduler, the KV accounting and the server
are the real ones, so clients, routers and dashboards can be tried. Every answer consists of filler tokens and
has the maximum length that its request allows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fgengine.analytic import profile_of
from fgengine.clock import RealTimeClock
from fgengine.config import EngineConfig
from fgengine.cost import CostModel, StepShape
from fgengine.model.catalog import shape_of
from fgengine.plan import PlanItem, StepPlan, StepResult
from fgengine.preflight import check_names
from fgengine.scheduling.scheduler import Scheduler
from fgengine.simulation.copying import SimulatedCopyEngine
from fgengine.simulation.setup import make_scheduler, pools_in_words

FIRST_FILLER = 300
"""Smallest filler token. In most vocabularies, special tokens and those of single bytes come before it."""
NUM_FILLERS = 1000


class EmulatedRunner:
    """A runner (``Runner``) that computes nothing and waits in real time.

    A step begins when it is launched or, if another one still runs, at that one's end. So the time in which
    the engine plans during a step does not make the next step late.
    """

    def __init__(self, cost: CostModel, vocab_size: int, clock: RealTimeClock) -> None:
        self._cost = cost
        self._vocab_size = vocab_size
        self._clock = clock
        self._busy_until = 0.0

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        """Begin a step; return a function that waits until it has ended and returns its result."""
        seconds = self._cost.step_seconds(StepShape.of_plan(plan))
        ends = self._busy_until = max(self._clock.now(), self._busy_until) + seconds
        new = [item for item in plan.items if item.yields_token]
        tokens = {item.request.id: self._filler(item) for item in new}
        logprobs = {item.request.id: 0.0 for item in new if item.request.params.logprobs}

        def collect() -> StepResult:
            self._clock.advance_to(ends)
            return StepResult(plan.step, seconds, tokens, logprobs)

        return collect

    def _filler(self, item: PlanItem) -> int:
        position = item.start + item.num_tokens - item.request.prompt_len
        return filler_token(position, self._vocab_size)


def filler_token(position: int, vocab_size: int) -> int:
    """Return the output token at ``position`` of an answer, 0 for the first. Successive tokens differ."""
    first = FIRST_FILLER if vocab_size > FIRST_FILLER else vocab_size // 2
    return first + position % min(NUM_FILLERS, vocab_size - first)


class Emulated(NamedTuple):
    """The parts of an engine on a device that is not here."""

    scheduler: Scheduler
    runner: EmulatedRunner
    copies: SimulatedCopyEngine
    clock: RealTimeClock
    vocab_size: int
    device: str
    """Name of the device."""


def emulated_parts(config: EngineConfig, report: Callable[[str], None]) -> Emulated:
    """Create the parts of an engine on ``config.device_spec``.

    Raises ValueError if the model, the device or the policy cannot be used.
    """
    check_names(config)
    profile, shape = profile_of(config), shape_of(config.model)
    assert profile.analytic is not None
    scheduler = make_scheduler(config, shape, profile, keep_learned=True)
    report(
        f"an analytic device, {profile.device}: step times are computed from published figures "
        f"({profile.analytic.spec.source}), and answers are filler"
    )
    report(pools_in_words(config, shape, profile))
    report(scheduler.queue.limit.describe())
    clock = RealTimeClock()
    copies = SimulatedCopyEngine(clock, scheduler.limits.block_bytes, profile.cost.copy_bytes_per_second)
    runner = EmulatedRunner(profile.cost, shape.vocab_size, clock)
    return Emulated(scheduler, runner, copies, clock, shape.vocab_size, profile.device)
