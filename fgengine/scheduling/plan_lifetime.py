"""Lifetime of a plan: how many steps it holds, so that a simulation can take them as one. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from fgengine.kv.manager import KVManager
from fgengine.plan import PlanItem
from fgengine.scheduling.residency import KVResidency
from fgengine.scheduling.step_builder import StepBuilder


@dataclass(frozen=True, slots=True)
class PlanLifetime:
    """How long a plan holds if nothing arrives, no request is aborted and no copy ends."""

    steps: int
    """Number of times the plan may be executed in a row."""
    until: float
    """No repetition may begin at or after this time, seconds on the engine's clock."""


ONCE = PlanLifetime(1, math.inf)


def repeatable_steps(builder: StepBuilder, kv: KVManager, residency: KVResidency) -> int:
    """Return for how many steps the scheduler would make the same plan.

    It assumes that the policy's order does not change. A plan of decodes holds until one of them ends or the
    free blocks run out. If memory is short, it holds until one of them needs a block. The result is
    conservative: 1 if it is not known.
    """
    if builder.has_prefill or builder.moved or (builder.short and builder.grew):
        return 1
    steps = _steps_to_an_end(builder.items)
    if (steady := residency.pressure.steady_steps(len(builder.items))) is not None:
        steps = min(steps, steady)
    if not residency.pressure.active:
        steps = min(steps, residency.pressure.work.steps_until_too_much(builder.items))
    spare = 0 if builder.short else kv.device.num_free
    if (until_full := residency.pressure.blocks_until_full) is not None:
        if until_full < 0:
            return 1  # the next step begins under pressure
        spare = min(spare, until_full)
    if residency.reserve is not None:
        # Proactive copies depend on expected waits, which change with every step.
        reserve = residency.reserve.blocks(builder.now)
        if kv.on_host or kv.transfers_in_flight or spare < reserve:
            return 1
        spare -= reserve
    return _steps_within(spare, builder.items, steps, kv.block_size) if steps > 1 else 1


def _steps_to_an_end(items: Collection[PlanItem]) -> int:
    """Return the number of steps until the first item ends; 1 if an item is not a plain decode."""
    steps = 2**31
    for request, _, _, _, yields_token in items:
        generated = len(request.tokens) - request.prompt_len
        if generated == 0 or not yields_token or request.params.stop_token_ids:
            return 1
        steps = min(steps, request.params.max_tokens - generated)
    return steps


def _steps_within(spare: int, items: Collection[PlanItem], steps: int, size: int) -> int:
    """Return the largest number of steps, up to ``steps``, that needs at most ``spare`` new blocks."""

    def needed(steps: int) -> int:
        return sum(max(0, -(-(item.start + steps) // size) - len(item.blocks)) for item in items)

    if len(items) * (steps // size + 1) <= spare or needed(steps) <= spare:
        return steps
    low, high = 1, steps  # the first step has its blocks already
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(middle) <= spare else (low, middle)
    return low
