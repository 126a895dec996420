"""Measures the time of one step and its floor. Used by step.py and gpu.py."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from fgengine.execution.runner import TorchRunner
from fgengine.physics import Ceilings, floor_of
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request, SamplingParams

PARAMS = SamplingParams(max_tokens=1, temperature=0.0)


def measure(
    runner: TorchRunner, step: str, requests: int, context: int, repeats: int, ceilings: Ceilings
) -> dict[str, Any]:
    """Measure one kind of step.

    Its floor is the time that its bytes or its arithmetic take at the measured rates. ``seconds`` is the time
    from the end of one step to the end of the next one. Each step is launched before the previous one ends,
    as in the engine on a GPU. ``alone_seconds`` is the time on the device if no other step is launched.
    """
    plan = plan_of(runner, requests, context, context if step == "prefill" else 1)
    items = [(item.start, item.num_tokens) for item in plan.items]
    floor = floor_of(items, runner.shape, runner.dtype.itemsize, ceilings)
    for _ in range(min(3, repeats)):
        runner.execute(plan)  # the first step of a shape also compiles and allocates
    seconds = periods(runner, plan, repeats)
    median = statistics.median(seconds)
    return {
        "step": step,
        "requests": requests,
        "context": context,
        "seconds": median,
        "best_seconds": min(seconds),
        "alone_seconds": statistics.median(runner.execute(plan).seconds for _ in range(repeats)),
        "floor_seconds": floor.seconds,
        "bound_by": "reading" if floor.reading >= floor.computing else "computing",
        "ratio": median / floor.seconds,
        "matmul_share": floor.computing / median,
    }


def periods(
    runner: TorchRunner, plan: StepPlan, times: int, before_each: Callable[[], None] = lambda: None
) -> list[float]:
    """Return ``times`` periods: the seconds between the ends of two successive steps.

    The last step is not counted, because no step is launched after it.

    Args:
        before_each: called before each launch.
    """
    ends = []
    running = runner.launch(plan)
    for _ in range(times + 1):
        before_each()
        following = runner.launch(plan)
        running()
        ends.append(time.perf_counter())
        running = following
    running()
    return [later - earlier for earlier, later in pairwise(ends)]


def plan_of(runner: TorchRunner, requests: int, context: int, new: int) -> StepPlan:
    """Return a step that computes the last ``new`` tokens of each request.

    The requests have random tokens and scattered KV blocks.
    """
    rng = random.Random(0)
    need = blocks_for(runner, context)
    free = rng.sample(range(runner.num_device_blocks), requests * need)
    items = []
    for n in range(requests):
        tokens = [rng.randrange(runner.shape.vocab_size) for _ in range(context)]
        request = Request.new(str(n), tokens, PARAMS, 0.0)
        request.num_computed = context - new
        items.append(PlanItem(request, context - new, new, free[n * need : (n + 1) * need], True))
    return StepPlan(0, items)


def blocks_for(runner: TorchRunner, tokens: int) -> int:
    """Return the number of KV blocks for ``tokens`` tokens."""
    return -(-tokens // runner.block_size)
