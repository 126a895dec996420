"""Measures how long a runner's steps and copies take: what a profile is made of.

Steps are made by hand: made-up tokens, a block of its own for everything, no scheduler.
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
from fgengine.profile import ELEMENT_BYTES, Conditions, Profile, fit, shape_key
from fgengine.profile_grid import Grid, TimedStep
from fgengine.request import Request, SamplingParams

if TYPE_CHECKING:
    import torch

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


ProfileProgress = Callable[[int, int, TimedStep], None]
"""Told, after each repeat: how many are done, of how many, and the point as measured so far."""


def measure(
    runner: ProfiledRunner,
    grid: Grid,
    progress: ProfileProgress = lambda done, total, point: None,
) -> list[TimedStep]:
    """Medians of the seconds of every point of the grid that the runner's requests and batches reach.

    On a CPU they do not depend on the size of the engine's own pool: where it is too small, a larger one
    serves, as far as memory is free. On a GPU nothing is left for a larger one. Points beyond are left out.

    Raises:
        ValueError: requests may not be long enough, or too little memory is free, for any of the prefills or
            decodes.
    """
    short_enough = [point for point in grid.points() if _reached(point, runner)]
    most = runner.most_blocks
    points = [point for point in short_enough if point.num_blocks(runner.block_size) <= most]
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
    num_blocks = max(point.num_blocks(runner.block_size) for point in points)
    with runner.larger_pool(num_blocks):
        _fill_pool(runner, num_blocks)
        return _measure_points(runner, points, grid, progress)


def _measure_points(
    runner: ProfiledRunner, points: list[TimedStep], grid: Grid, progress: ProfileProgress
) -> list[TimedStep]:
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


def _reached(point: TimedStep, runner: ProfiledRunner) -> bool:
    return point.longest <= runner.max_model_len and point.decode_requests <= runner.most_decodes


def _enough(points: Sequence[TimedStep]) -> bool:
    """Whether there is one of each kind."""
    return any(p.prefill_tokens for p in points) and any(p.decode_requests for p in points)


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


def make_profile(
    model: str,
    runner: ProfiledRunner,
    grid: Grid,
    progress: ProfileProgress = lambda done, total, point: None,
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

    before = sample()
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
        conditions=Conditions.of(load_between(before, sample())),
    )
    for _ in range(CEILING_ATTEMPTS):
        if profile.closest_to_floor(runner.shape)[1] >= 1.0:
            break
        # A machine busy with something else gives low ceilings: sample again before calling a step too fast.
        profile = replace(profile, ceilings=profile.ceilings.or_better(ceilings()))
    if problems := profile.implausible(runner.shape):
        raise ValueError(f"what was measured cannot be true, so no profile is made of it: {problems[0]}")
    return profile


def describe_device(runner: ProfiledRunner) -> str:
    """A CPU with its threads: half the threads is another device."""
    if runner.device.type != "cpu":
        return runner.device_name
    return f"{runner.device_name}, {runner.num_threads} threads of {os.cpu_count()}"
