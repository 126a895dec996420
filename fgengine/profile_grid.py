"""The steps that a profile measures: prompts, chunks after computed tokens, decodes, and mixed steps.

Up to a third of the steps is held out of the fit, to measure its accuracy. None of these is at a corner of
the grid. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from fgengine.cost import StepShape


@dataclass(frozen=True, slots=True)
class TimedStep:
    """One kind of step and its measured time: a prompt (or a chunk of one), decodes, or both."""

    prefill_tokens: int
    decode_requests: int
    context_tokens: int
    """Tokens that each decode attends to, including its new one."""
    seconds: float = math.nan
    """Median over ``repeats``; NaN: not measured yet."""
    repeats: int = 0
    prefill_start: int = 0
    """Tokens of the prompt that were computed before the chunk."""
    held_out: bool = False
    """Whether the point is held out of the fit, to measure its accuracy."""

    @property
    def items(self) -> list[tuple[int, int]]:
        """(start, num_tokens) of each request in the step."""
        prefill = [(self.prefill_start, self.prefill_tokens)] if self.prefill_tokens else []
        return prefill + [(self.context_tokens - 1, 1)] * self.decode_requests

    @property
    def shape(self) -> StepShape:
        """The sizes that the cost model uses."""
        return StepShape.of(self.items)

    @property
    def longest(self) -> int:
        """Tokens of the longest request in the step."""
        return max(start + n for start, n in self.items)

    def num_blocks(self, block_size: int) -> int:
        """Return the KV blocks of all requests in the step."""
        return sum(-(-(start + n) // block_size) for start, n in self.items)


@dataclass(frozen=True, slots=True)
class Grid:
    """The steps to measure.

    They are every prompt alone, every chunk after computed tokens, every decode batch at every context, and
    every prompt of ``mixed`` together with every decode batch.
    """

    prefill: tuple[int, ...]
    """Lengths of prompts and chunks, in tokens; chunks leave out the last length."""
    chunk_starts: tuple[int, ...]
    """Numbers of computed tokens before a chunk."""
    decode: tuple[int, ...]
    """Numbers of decodes in a batch."""
    context: tuple[int, ...]
    """Contexts of the decodes, in tokens."""
    mixed: tuple[int, ...]
    """Lengths of prompts that run together with decodes, in tokens."""
    repeats: int
    """Maximum number of measurements of a point."""
    seconds_per_point: float
    """Measured seconds after which a point is not repeated; it is measured at least once, after a warm-up."""

    def points(self) -> list[TimedStep]:
        """Return all steps of the grid, not measured yet."""
        alone = [TimedStep(n, 0, 0) for n in self.prefill]
        chunks = [
            TimedStep(n, 0, 0, prefill_start=start) for start in self.chunk_starts for n in self.prefill[:-1]
        ]
        decodes = [TimedStep(0, b, c) for b, c in product(self.decode, self.context)]
        mixes = [TimedStep(n, b, c) for n, b, c in product(self.mixed, self.decode, self.context)]
        return [point for family in (alone, chunks, decodes, mixes) for point in _hold_out(family)]


FULL = Grid(
    prefill=(16, 64, 128, 256, 512, 1024, 1536),
    chunk_starts=(256, 1024),
    decode=(1, 2, 4, 8, 16, 32),
    context=(32, 128, 512, 1024),
    mixed=(64, 256),
    repeats=7,
    seconds_per_point=1.0,
)
GPU = replace(FULL, prefill=(*FULL.prefill, 2048), decode=(1, 4, 16, 32, 64, 128))
"""The grid for GPUs, whose batches are larger. Only long prompts show how fast the arithmetic is: short ones
take as long as reading the weights."""
QUICK = Grid(
    prefill=(16, 64, 256, 512),
    chunk_starts=(512,),
    decode=(1, 4, 16),
    context=(32, 256, 512),
    mixed=(),
    repeats=3,
    seconds_per_point=0.3,
)
QUICK_GPU = replace(QUICK, prefill=(16, 64, 256, 512, 1024, 2048), decode=(1, 4, 16, 64), mixed=(512,))
"""The quick grid for GPUs."""


def grid_for(device_type: str, *, quick: bool) -> Grid:
    """Return the grid for a device type of torch, such as ``cpu`` or ``cuda``."""
    if device_type == "cpu":
        return QUICK if quick else FULL
    return QUICK_GPU if quick else GPU


def _hold_out(family: Sequence[TimedStep]) -> list[TimedStep]:
    """Mark every second inner point of a family as held out, up to a third of the family.

    A point is an inner point if one of its coordinates is neither the minimum nor the maximum in the family.
    """
    coordinates = [(p.prefill_tokens, p.decode_requests, p.context_tokens) for p in family]
    axes = list(zip(*coordinates, strict=True))
    smallest, largest = [min(a) for a in axes], [max(a) for a in axes]
    inner = [
        index
        for index, here in enumerate(coordinates)
        if any(low < value < high for low, value, high in zip(smallest, here, largest, strict=True))
    ]
    chosen = set(inner[1::2][: len(family) // 3])
    return [replace(point, held_out=index in chosen) for index, point in enumerate(family)]
