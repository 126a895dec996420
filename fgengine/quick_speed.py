"""How fast this machine serves, for a default that must be known before the first request."""

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
    """By ``cost`` where the engine has one, else by a profile that is at hand, else by a few timed steps.

    None where requests may not be long enough to time any.
    """
    cost = cost or _cost_at_hand(config, runner)
    if cost is not None:
        return Speed.of(cost, config.max_batch_size)
    report("timing a few steps, to know how much work may wait (--max-queue)")
    return timed_speed(runner, config.max_batch_size)


def timed_speed(runner: profiler.ProfiledRunner, max_batch_size: int) -> Speed | None:
    """By one prompt and one batch of decodes, each computed a few times. None: they do not fit."""
    prompt = min(TYPICAL_PROMPT, runner.max_model_len)
    decodes = min(max_batch_size, runner.most_decodes)
    context = min(TYPICAL_CONTEXT, runner.max_model_len)
    if runner.device.type != "cpu":  # its pool cannot be made larger for this
        context = min(context, runner.num_device_blocks // decodes * runner.block_size)
    if prompt < 2 or context < 1:
        return None
    grid = Grid(
        prefill=(prompt,),
        behind=(),
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


def _cost_at_hand(config: EngineConfig, runner: profiler.ProfiledRunner) -> CostModel | None:
    """Of the profile asked for, or of the one in the cache; None where neither is usable here."""
    path = config.profile or default_path(config.model, runner)
    try:
        profile = Profile.load(path)
        profile.require(shape=runner.shape, device=profiler.describe_device(runner), dtype=runner.dtype_name)
    except ValueError:
        return None
    return profile.cost
