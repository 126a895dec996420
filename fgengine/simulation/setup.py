"""From an engine's settings and a profile to simulated copies of that engine."""

from __future__ import annotations

import sys

from fgengine.config import EngineConfig
from fgengine.kv.sizing import (
    CPU_POOL_LIMIT_BYTES,
    PINNED_LIMIT_BYTES,
    TYPICAL_REQUEST_TOKENS,
    Pools,
    block_bytes,
    default_host_blocks,
    division,
)
from fgengine.model.shape import ModelShape
from fgengine.profile import ELEMENT_BYTES, Profile
from fgengine.scheduling.scheduler import Scheduler
from fgengine.simulation.cluster import Cluster
from fgengine.simulation.replica import Replica
from fgengine.simulation.routing import make_router
from fgengine.speed import Speed


def make_cluster(
    config: EngineConfig,
    shape: ModelShape,
    profile: Profile,
    *,
    replicas: int = 1,
    router: str = "round-robin",
    seed: int = 0,
    keep_token_times: bool = False,
) -> Cluster:
    """``replicas`` times what ``Engine.from_config`` would start on the profile's device, behind a router.

    Raises:
        ValueError: there is no such router, the profile is of another model or dtype, or an engine would not
            start with these settings.
    """
    check_profile(config, shape, profile)
    copies = [make_replica(config, shape, profile, keep_token_times) for _ in range(replicas)]
    return Cluster(copies, make_router(router, seed))


def make_replica(
    config: EngineConfig, shape: ModelShape, profile: Profile, keep_token_times: bool
) -> Replica:
    scheduler = Scheduler.build(
        config,
        pools_of(config, shape, profile),
        block_bytes=block_bytes(shape, config.block_size, ELEMENT_BYTES[profile.dtype]),
        max_model_len=config.max_model_len or shape.max_position,
        cost=profile.cost,
        speed=lambda: Speed.of(profile.cost, config.max_batch_size),
        keep_learned=False,
    )
    return Replica(scheduler, profile.cost, keep_token_times=keep_token_times)


def check_profile(config: EngineConfig, shape: ModelShape, profile: Profile) -> None:
    """Raises ValueError for settings that no engine on the profile's device would start with."""
    dtype = profile.dtype if config.dtype == "auto" else config.dtype
    profile.require(shape=shape, device=profile.device, dtype=dtype)
    if config.device != "auto" and (config.device == "cpu") != profile.on_cpu:
        raise ValueError(f"the profile is of {profile.device}, which is not the device {config.device}")
    if config.max_model_len is not None and config.max_model_len > shape.max_position:
        raise ValueError(
            f"max_model_len {config.max_model_len} is more than the {shape.max_position} tokens this model "
            "was made for"
        )


def pools_of(config: EngineConfig, shape: ModelShape, profile: Profile) -> Pools:
    """The blocks of the two pools: an engine's default ones where it finds as much memory as it would use.

    A profile does not say how much memory was free on its machine, so this assumes that it is no limit: the
    device pool of a CPU is ``CPU_POOL_LIMIT_BYTES``, a host pool four times the device pool, beside a GPU at
    most ``PINNED_LIMIT_BYTES``.

    Raises:
        ValueError: the profile is of a GPU, whose memory it does not say, and ``num_device_blocks`` is not
            set.
    """
    per_block = block_bytes(shape, config.block_size, ELEMENT_BYTES[profile.dtype])
    device = config.num_device_blocks
    if device is None:
        if not profile.on_cpu:
            raise ValueError(
                f"the profile does not say how much memory {profile.device} has: give --num-device-blocks "
                f"(a block of {config.block_size} tokens takes {per_block:,} bytes)"
            )
        device = max(1, CPU_POOL_LIMIT_BYTES // per_block)
    if config.swap_space_bytes is not None:
        return Pools(device, config.swap_space_bytes // per_block)
    most = sys.maxsize if profile.on_cpu else PINNED_LIMIT_BYTES
    return Pools(device, default_host_blocks(config, device, per_block, most))


def pools_in_words(config: EngineConfig, shape: ModelShape, profile: Profile) -> str:
    """The pools of ``pools_of``, and what was assumed of them, in a line."""
    pools = pools_of(config, shape, profile)
    per_block = block_bytes(shape, config.block_size, ELEMENT_BYTES[profile.dtype])
    longest = min(TYPICAL_REQUEST_TOKENS, config.max_model_len or shape.max_position)
    line = division({}, pools, config.block_size, per_block, longest)
    by_rule = config.num_device_blocks is None or (config.swap_space_bytes is None and config.copies_to_host)
    return f"{line}; assumed: memory enough for the default pools" if by_rule else line
