"""Measures the times of a runner's steps and copies, and makes a profile of them.

The steps are synthetic: they have fake tokens and their own blocks, and no scheduler plans them.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timezone
from itertools import count
from statistics import median
from typing import TYPE_CHECKING, Any, Protocol

from fgengine.kv.transfer import CopyEngine, Transfer
from fgengine.machine_load import load_between, sample
from fgengine.model.shape import ModelShape
from fgengine.physics import Ceilings
from fgengine.plan import PlanItem, StepPlan, StepResult
from fgengine.profile import ELEMENT_BYTES, Conditions, Profile, shape_key
from fgengine.profile_fit import fit
from fgengine.profile_grid import Grid, TimedStep
from fgengine.request import Request, SamplingParams

if TYPE_CHECKING:
    import torch

COPY_BLOCKS = 64
COPY_REPEATS = 5
CEILING_ATTEMPTS = 3


class ProfiledRunner(Protocol):
    """The part of a runner that the profiler uses; see ``fgengine.execution.runner.TorchRunner``."""

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
    """Maximum number of compute threads of a CPU."""
    pool: Any
    """The device pool; its first axis counts blocks."""

    @property
    def max_decodes(self) -> int:
        """Maximum decodes in a batch. An engine would compute a larger batch in another way."""
        ...

    @property
    def max_blocks(self) -> int:
        """Maximum blocks that ``larger_pool`` can provide."""
        ...

    def larger_pool(self, num_blocks: int) -> AbstractContextManager[None]:
        """Make ``pool`` temporarily a pool with at least ``num_blocks`` blocks."""
        ...

    def trial_copies(self, num_blocks: int) -> AbstractContextManager[CopyEngine]:
        """Provide a copy engine between ``pool`` and a temporary host pool of ``num_blocks``."""
        ...

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute a step and wait for it."""
        ...


ProfileProgress = Callable[[int, int, TimedStep], None]
"""Called after each repeat with (repeats done, total repeats, the point as measured so far)."""


def measure(
    runner: ProfiledRunner,
    grid: Grid,
    progress: ProfileProgress = lambda done, total, point: None,
) -> list[TimedStep]:
    """Measure every point of the grid that the runner supports; return the points with their median seconds.

    On a CPU, the result does not depend on the size of the engine's own pool: if the pool is too small, a
    larger one is used, as far as memory is free. A GPU has no free memory for a larger pool. Points that do
    not fit are left out.

    Raises:
        ValueError: requests are too short, or too little memory is free, to measure at least one prefill and
            one decode.
    """
    short_enough = [point for point in grid.points() if _is_supported(point, runner)]
    max_blocks = runner.max_blocks
    points = [point for point in short_enough if point.num_blocks(runner.block_size) <= max_blocks]
    if not _has_both_kinds(short_enough):
        raise ValueError(
            f"a max_model_len of {runner.max_model_len} tokens is too short to measure a profile: "
            "raise it, or give an existing profile"
        )
    if not _has_both_kinds(points):
        raise ValueError(
            f"a KV pool of {max_blocks:,} blocks is too small to measure a profile, and no memory is free "
            "for a larger one: give an existing profile"
        )
    num_blocks = max(point.num_blocks(runner.block_size) for point in points)
    with runner.larger_pool(num_blocks):
        _fill_pool(runner, num_blocks)
        return _measure_points(runner, points, grid, progress)


def _measure_points(
    runner: ProfiledRunner, points: list[TimedStep], grid: Grid, progress: ProfileProgress
) -> list[TimedStep]:
    steps = count()
    items = [_plan_items(point, runner) for point in points]
    for point_items in items:
        runner.execute(StepPlan(next(steps), point_items))  # warm-up: the first step compiles and allocates
    # Measure in rounds over all points. So a temporary load of the machine affects one repeat of each point,
    # not all repeats of one point.
    samples: list[list[float]] = [[] for _ in points]
    measured = list(points)
    for turn in range(grid.repeats):
        for index, point in enumerate(points):
            if turn == 0 or sum(samples[index]) < grid.seconds_per_point:
                samples[index].append(runner.execute(StepPlan(next(steps), items[index])).seconds)
            measured[index] = replace(point, seconds=median(samples[index]), repeats=len(samples[index]))
            progress(turn * len(points) + index + 1, grid.repeats * len(points), measured[index])
    return measured


def _plan_items(point: TimedStep, runner: ProfiledRunner) -> list[PlanItem]:
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


def _is_supported(point: TimedStep, runner: ProfiledRunner) -> bool:
    return point.longest <= runner.max_model_len and point.decode_requests <= runner.max_decodes


def _has_both_kinds(points: Sequence[TimedStep]) -> bool:
    """Whether at least one point has a prefill and at least one has decodes."""
    return any(p.prefill_tokens for p in points) and any(p.decode_requests for p in points)


def _fill_pool(runner: ProfiledRunner, num_blocks: int) -> None:
    """Write normal numbers to the pool.

    Linux maps all pages that were never written to one page of zeros, which remains in the CPU cache, so
    decodes would seem too fast. Old content might be denormal numbers, which are slow to compute with.
    """
    runner.pool[:num_blocks] = 0.01


def measure_copies(runner: ProfiledRunner) -> float:
    """Measure copies between the pools; return the bytes per second of the slower direction.

    Raises:
        ValueError: there is not enough host memory for a few blocks.
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


def make_profile(
    model: str,
    runner: ProfiledRunner,
    grid: Grid,
    progress: ProfileProgress = lambda done, total, point: None,
) -> Profile:
    """Measure the grid's steps and copies, fit the cost model, and check that the times are possible.

    Raises:
        ValueError: the pool is too small, or a measured or fitted time is physically impossible.
    """
    import torch

    from fgengine.ceilings import measure_ceilings

    def ceilings() -> Ceilings:
        weight_bytes = runner.shape.num_parameters * ELEMENT_BYTES[runner.dtype_name]
        return measure_ceilings(runner.device, runner.dtype, weight_bytes)

    before = sample()
    best = ceilings()
    points = measure(runner, grid, progress)
    profile = Profile(
        model=model,
        shape=shape_key(runner.shape),
        device=describe_device(runner),
        dtype=runner.dtype_name,
        cost=fit(points, measure_copies(runner), with_maximum=runner.device.type != "cpu"),
        ceilings=best,
        points=tuple(points),
        versions={"python": platform.python_version(), "torch": torch.__version__},
        measured=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        conditions=Conditions.of(load_between(before, sample())),
    )
    for _ in range(CEILING_ATTEMPTS):
        if profile.closest_to_floor(runner.shape)[1] >= 1.0:
            break
        # The measured ceilings are too low if the machine was busy: measure again before refusing the steps.
        profile = replace(profile, ceilings=profile.ceilings.or_better(ceilings()))
    if problems := profile.implausible(runner.shape):
        raise ValueError(f"the measurement cannot be true, so no profile is made of it: {problems[0]}")
    return profile


def describe_device(runner: ProfiledRunner) -> str:
    """Return the name of the device; for a CPU with its threads, because they change its speed."""
    if runner.device.type != "cpu":
        return runner.device_name
    return f"{runner.device_name}, {runner.num_threads} threads of {os.cpu_count()}"
