"""Estimates the speed of this machine, for the default queue limit, which is set before the first request."""

from __future__ import annotations

from collections.abc import Callable

from fgengine import profiler
from fgengine.config import EngineConfig
from fgengine.cost import CostModel
from fgengine.profile import Profile
from fgengine.profile_cache import default_path
from fgengine.profile_grid import Grid
from fgengine.speed import TYPICAL_CONTEXT, TYPICAL_PROMPT, Speed


def speed_of(
    config: EngineConfig,
    runner: profiler.ProfiledRunner,
    cost: CostModel | None,
    report: Callable[[str], None] = lambda line: None,
) -> Speed | None:
    """Estimate the speed by ``cost`` if given, else by an available profile, else by a few timed steps.

    Returns None if requests are too short to time any step.
    """
    cost = cost or _cost_of_profile(config, runner)
    if cost is not None:
        return Speed.of(cost, config.max_batch_size)
    report("timing a few steps, to set the default queue limit (--max-queue)")
    return timed_speed(runner, config.max_batch_size)


def timed_speed(runner: profiler.ProfiledRunner, max_batch_size: int) -> Speed | None:
    """Time one prompt and one batch of decodes, a few times each. Returns None if they do not fit."""
    prompt = min(TYPICAL_PROMPT, runner.max_model_len)
    decodes = min(max_batch_size, runner.max_decodes)
    context = min(TYPICAL_CONTEXT, runner.max_model_len)
    if runner.device.type != "cpu":  # a GPU's pool cannot be enlarged for this
        context = min(context, runner.num_device_blocks // decodes * runner.block_size)
    if prompt < 2 or context < 1:
        return None
    grid = Grid(
        prefill=(prompt,),
        chunk_starts=(),
        decode=(decodes,),
        context=(context,),
        mixed=(),
        repeats=3,
        seconds_per_point=0.3,
    )
    try:
        points = profiler.measure(runner, grid)
    except ValueError:
        return None
    prefill, decode = (point.seconds for point in points)
    return Speed(prompt / prefill, decodes / decode)


def _cost_of_profile(config: EngineConfig, runner: profiler.ProfiledRunner) -> CostModel | None:
    """Return the cost model of the configured profile, else of the cached one; None if it is not usable."""
    path = config.profile or default_path(config.model, runner)
    try:
        profile = Profile.load(path)
        profile.require(shape=runner.shape, device=profiler.describe_device(runner), dtype=runner.dtype_name)
    except ValueError:
        return None
    return profile.cost
