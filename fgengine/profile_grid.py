"""Which steps a profile measures: prompts alone, chunks behind computed tokens, decodes, and both together.

A third of them, none at a corner of the grid, is held out from the fit and says how far it can be trusted.
Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from fgengine.cost import StepShape


@dataclass(frozen=True, slots=True)
class TimedStep:
    """One kind of step, measured: a prompt (or a chunk behind ``prefill_start`` tokens) beside decodes."""

    prefill_tokens: int
    decode_requests: int
    context_tokens: int
    """Tokens each of the decodes attends to, its new one included."""
    seconds: float = math.nan
    """Median over ``repeats``; NaN: to be measured."""
    repeats: int = 0
    prefill_start: int = 0
    held_out: bool = False
    """Not part of the fit, which is judged by it."""

    @property
    def items(self) -> list[tuple[int, int]]:
        """(start, num_tokens) of each request in the step."""
        prefill = [(self.prefill_start, self.prefill_tokens)] if self.prefill_tokens else []
        return prefill + [(self.context_tokens - 1, 1)] * self.decode_requests

    @property
    def shape(self) -> StepShape:
        return StepShape.of(self.items)

    @property
    def longest(self) -> int:
        """Tokens of its longest request."""
        return max(start + n for start, n in self.items)

    def num_blocks(self, block_size: int) -> int:
        """KV blocks of all its requests."""
        return sum(-(-(start + n) // block_size) for start, n in self.items)


@dataclass(frozen=True, slots=True)
class Grid:
    """Which steps are measured: every prompt length alone, every chunk behind ``behind`` tokens, every decode
    batch at every context, and every length of ``mixed`` beside every one of those."""

    prefill: tuple[int, ...]
    behind: tuple[int, ...]
    decode: tuple[int, ...]
    context: tuple[int, ...]
    mixed: tuple[int, ...]
    repeats: int
    seconds_per_point: float
    """After which a point is repeated no more; it is measured once at least, after a run to warm up."""

    def points(self) -> list[TimedStep]:
        alone = [TimedStep(n, 0, 0) for n in self.prefill]
        chunks = [TimedStep(n, 0, 0, prefill_start=start) for start in self.behind for n in self.prefill[:-1]]
        decodes = [TimedStep(0, b, c) for b, c in product(self.decode, self.context)]
        mixes = [TimedStep(n, b, c) for n, b, c in product(self.mixed, self.decode, self.context)]
        return [point for family in (alone, chunks, decodes, mixes) for point in _hold_out(family)]


FULL = Grid(
    prefill=(16, 64, 128, 256, 512, 1024, 1536),
    behind=(256, 1024),
    decode=(1, 2, 4, 8, 16, 32),
    context=(32, 128, 512, 1024),
    mixed=(64, 256),
    repeats=7,
    seconds_per_point=1.0,
)
GPU = replace(FULL, decode=(1, 4, 16, 32, 64, 128))
"""A GPU's batches are larger."""
QUICK = Grid(
    prefill=(16, 64, 256, 512),
    behind=(512,),
    decode=(1, 4, 16),
    context=(32, 256, 512),
    mixed=(),
    repeats=3,
    seconds_per_point=0.3,
)


def _hold_out(family: Sequence[TimedStep]) -> list[TimedStep]:
    """Marks every other inner point of a family, up to a third of it: those with a coordinate that is
    neither the family's least nor its largest."""
    coordinates = [(p.prefill_tokens, p.decode_requests, p.context_tokens) for p in family]
    axes = list(zip(*coordinates, strict=True))
    least, largest = [min(a) for a in axes], [max(a) for a in axes]
    inner = [
        index
        for index, here in enumerate(coordinates)
        if any(low < value < high for low, value, high in zip(least, here, largest, strict=True))
    ]
    chosen = set(inner[1::2][: len(family) // 3])
    return [replace(point, held_out=index in chosen) for index, point in enumerate(family)]
