"""Measures how long a runner's steps take and fits the cost model to them.

Steps are made by hand: made-up tokens, a block of its own for everything, no scheduler. A third of the
points, none at a corner of the grid, is kept from the fit and says how far it can be trusted.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import count, product
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from fgengine.cost import CostModel, StepShape
from fgengine.kv.transfer import CopyEngine, Transfer
from fgengine.machine_load import load_between, look
from fgengine.model.shape import ModelShape
from fgengine.physics import Ceilings
from fgengine.plan import PlanItem, StepPlan, StepResult
from fgengine.profile import ELEMENT_BYTES, Conditions, Point, Profile, shape_key
from fgengine.request import Request, SamplingParams

if TYPE_CHECKING:
    import torch

LEAST_STEP_SECONDS = 1e-6
COPY_BLOCKS = 64
COPY_REPEATS = 5
CEILING_ATTEMPTS = 3


class ProfiledRunner(Protocol):
    """What of a runner the profiler needs; ``fgengine.execution.runner.TorchRunner`` is one."""

    shape: ModelShape
    device: torch.device
    dtype: torch.dtype
    device_name: str
    dtype_name: str
    block_size: int
    block_bytes: int
    num_device_blocks: int
    max_model_len: int
    num_threads: int
    """That compute at most, on a CPU."""
    pool: Any
    """The device pool, its first axis counting blocks."""

    @property
    def most_decodes(self) -> int:
        """A larger batch of decodes is not computed as an engine computes its own."""
        ...

    @property
    def most_blocks(self) -> int:
        """As many as ``larger_pool`` can give."""
        ...

    def larger_pool(self, num_blocks: int) -> AbstractContextManager[None]:
        """Meanwhile ``pool`` has at least so many blocks."""
        ...

    def trial_copies(self, num_blocks: int) -> AbstractContextManager[CopyEngine]:
        """Copies between ``pool`` and a host pool of so many blocks that is there meanwhile."""
        ...

    def execute(self, plan: StepPlan) -> StepResult: ...


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

    def points(self) -> list[Point]:
        alone = [Point(n, 0, 0) for n in self.prefill]
        chunks = [Point(n, 0, 0, prefill_start=start) for start in self.behind for n in self.prefill[:-1]]
        decodes = [Point(0, b, c) for b, c in product(self.decode, self.context)]
        mixes = [Point(n, b, c) for n, b, c in product(self.mixed, self.decode, self.context)]
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


def _hold_out(family: Sequence[Point]) -> list[Point]:
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


Progress = Callable[[int, int, Point], None]
"""Told, after each repeat: how many are done, of how many, and the point as measured so far."""


def measure(
    runner: ProfiledRunner,
    grid: Grid,
    progress: Progress = lambda done, total, point: None,
) -> list[Point]:
    """Medians of the seconds of every point of the grid that the runner's requests and batches reach.

    On a CPU they do not depend on the size of the engine's own pool: where it is too small, a larger one
    serves, as far as memory is free. On a GPU nothing is left for a larger one. Points beyond are left out.

    Raises:
        ValueError: requests may not be long enough, or too little memory is free, for any of the prefills or
            decodes.
    """
    short_enough = [point for point in grid.points() if _reached(point, runner)]
    most = runner.most_blocks
    points = [point for point in short_enough if _blocks_of(point, runner.block_size) <= most]
    if not _enough(short_enough):
        raise ValueError(
            f"a max_model_len of {runner.max_model_len} tokens is too short to measure a profile with; "
            "raise it, or give a profile measured before"
        )
    if not _enough(points):
        raise ValueError(
            f"a KV pool of {most:,} blocks is too small to measure a profile with, and no memory is free for "
            "a larger one; give a profile measured before"
        )
    num_blocks = max(_blocks_of(point, runner.block_size) for point in points)
    with runner.larger_pool(num_blocks):
        _fill_pool(runner, num_blocks)
        return _measure_points(runner, points, grid, progress)


def _measure_points(
    runner: ProfiledRunner, points: list[Point], grid: Grid, progress: Progress
) -> list[Point]:
    steps = count()
    items = [_plan_items(point, runner) for point in points]
    for of_point in items:
        runner.execute(StepPlan(next(steps), of_point))  # the first of a shape also compiles and allocates
    # In rounds over all points, so that what else the machine does for a while spoils one repeat of each
    # point and not all repeats of one.
    samples: list[list[float]] = [[] for _ in points]
    measured = list(points)
    for turn in range(grid.repeats):
        for index, point in enumerate(points):
            if turn == 0 or sum(samples[index]) < grid.seconds_per_point:
                samples[index].append(runner.execute(StepPlan(next(steps), items[index])).seconds)
            measured[index] = replace(point, seconds=median(samples[index]), repeats=len(samples[index]))
            progress(turn * len(points) + index + 1, grid.repeats * len(points), measured[index])
    return measured


def _plan_items(point: Point, runner: ProfiledRunner) -> list[PlanItem]:
    items = []
    first_block = 0
    params = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    for index, (start, n) in enumerate(point.items):
        tokens = [(7 + 31 * index + 13 * k) % runner.shape.vocab_size for k in range(start + n)]
        request = Request.new(f"profile-{index}", tokens, params, 0.0)
        request.num_computed = start
        num_blocks = -(-(start + n) // runner.block_size)
        blocks = range(first_block, first_block + num_blocks)
        first_block += num_blocks
        items.append(PlanItem(request, start, n, blocks, True))
    return items


def _reached(point: Point, runner: ProfiledRunner) -> bool:
    return _longest(point) <= runner.max_model_len and point.decode_requests <= runner.most_decodes


def _enough(points: Sequence[Point]) -> bool:
    """Whether there is one of each kind."""
    return any(p.prefill_tokens for p in points) and any(p.decode_requests for p in points)


def _longest(point: Point) -> int:
    return max(start + n for start, n in point.items)


def _blocks_of(point: Point, block_size: int) -> int:
    return sum(-(-(start + n) // block_size) for start, n in point.items)


def _fill_pool(runner: ProfiledRunner, num_blocks: int) -> None:
    """Memory that was never written is not there: the system maps one page of zeros, which sits in the
    cache, and decodes would seem too fast. What was left in it might be denormals, which are slow."""
    runner.pool[:num_blocks] = 0.01


def measure_copies(runner: ProfiledRunner) -> float:
    """Bytes per second between the pools, the slower of the two directions.

    Raises:
        ValueError: there is no host memory for a few blocks.
    """
    n = min(COPY_BLOCKS, runner.num_device_blocks)
    blocks = range(n)
    seconds = []
    with runner.trial_copies(n) as copies:
        for direction in ("offload", "upload"):
            samples = []
            for index in range(COPY_REPEATS + 1):
                began = time.perf_counter()
                copies.submit(Transfer(index, "profile", direction, blocks, blocks))
                while not copies.wait():
                    pass
                samples.append(time.perf_counter() - began)
            seconds.append(median(samples[1:]))
    return n * runner.block_bytes / max(seconds)


def fit(points: Sequence[Point], copy_bytes_per_second: float) -> CostModel:
    """The cost model with the least sum of squared relative errors over the points that are not held out,
    every coefficient >= 0."""
    import numpy as np
    from scipy.optimize import nnls

    kept = [point for point in points if not point.held_out]
    rows = np.array([_features(point.shape) for point in kept]) / np.array([[p.seconds] for p in kept])
    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0.0] = 1.0
    solution, _ = nnls(rows / scale, np.ones(len(kept)))
    step, request, token, pair, decode, context = (solution / scale).tolist()
    return CostModel(
        max(step, LEAST_STEP_SECONDS), request, token, pair, decode, context, copy_bytes_per_second
    )


def _features(shape: StepShape) -> list[float]:
    """In the order of CostModel's coefficients."""
    return [
        1.0,
        shape.prefill_requests,
        shape.prefill_tokens,
        shape.prefill_pairs,
        shape.decode_requests,
        shape.decode_context,
    ]


def make_profile(
    model: str,
    runner: ProfiledRunner,
    grid: Grid,
    progress: Progress = lambda done, total, point: None,
) -> Profile:
    """Measure, fit, and hold against physics.

    Raises:
        ValueError: the pool is too small, or what was measured cannot be true.
    """
    import torch

    from fgengine.ceilings import measure_ceilings

    def ceilings() -> Ceilings:
        weight_bytes = runner.shape.num_parameters * ELEMENT_BYTES[runner.dtype_name]
        return measure_ceilings(runner.device, runner.dtype, weight_bytes)

    before = look()
    best = ceilings()
    points = measure(runner, grid, progress)
    profile = Profile(
        model=model,
        shape=shape_key(runner.shape),
        device=describe_device(runner),
        dtype=runner.dtype_name,
        cost=fit(points, measure_copies(runner)),
        ceilings=best,
        points=tuple(points),
        versions={"python": platform.python_version(), "torch": torch.__version__},
        measured=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        conditions=Conditions.of(load_between(before, look())),
    )
    for _ in range(CEILING_ATTEMPTS):
        if profile.closest_to_floor(runner.shape)[1] >= 1.0:
            break
        # A machine busy with something else gives low ceilings: look again before calling a step too fast.
        profile = replace(profile, ceilings=profile.ceilings.or_better(ceilings()))
    if problems := profile.implausible(runner.shape):
        raise ValueError(f"what was measured cannot be true, so no profile is made of it: {problems[0]}")
    return profile


def is_complete(profile: Profile, runner: ProfiledRunner, grid: Grid) -> bool:
    """Whether nothing was left out that an engine with other settings would need, such as longer requests."""
    possible = [point for point in grid.points() if _longest(point) <= runner.shape.max_position]
    return len(profile.points) == len(possible)


def describe_device(runner: ProfiledRunner) -> str:
    """A CPU with its threads: half the threads is another device."""
    if runner.device.type != "cpu":
        return runner.device_name
    return f"{runner.device_name}, {runner.num_threads} threads of {os.cpu_count()}"
