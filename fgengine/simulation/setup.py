"""Creates simulated replicas from an engine's settings and a profile."""

from __future__ import annotations

import sys

from fgengine.config import EngineConfig
from fgengine.devices import DeviceSpec
from fgengine.kv.fitting import step_bytes
from fgengine.kv.sizing import (
    CPU_POOL_LIMIT_BYTES,
    DUMMY_BLOCKS,
    PINNED_LIMIT_BYTES,
    TYPICAL_REQUEST_TOKENS,
    GpuMemory,
    Pools,
    block_bytes,
    default_host_blocks,
    device_blocks_on_gpu,
    division,
    listed,
)
from fgengine.model.shape import ModelShape
from fgengine.profile import ELEMENT_BYTES, Profile
from fgengine.scheduling.scheduler import Scheduler
from fgengine.simulation.cluster import Cluster
from fgengine.simulation.replica import Replica
from fgengine.simulation.routing import make_router
from fgengine.speed import Speed
from fgengine.units import size


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
    """Create a cluster of simulated replicas.

    Each replica has the same scheduler and pools as ``Engine.from_config`` would create on the profile's
    device.

        cluster = make_cluster(EngineConfig(policy="fcfs"), shape_of("smollm2-135m"), profile, replicas=2)

    Args:
        router: a key of ``fgengine.simulation.routing.ROUTERS``.
        seed: seed of the router's random choices.
        keep_token_times: whether to record the time of each token.

    Raises ValueError if there is no such router, if the profile is of another model or dtype, or if an engine
    would not start with these settings.
    """
    check_profile(config, shape, profile)
    copies = [make_replica(config, shape, profile, keep_token_times) for _ in range(replicas)]
    return Cluster(copies, make_router(router, seed))


def make_replica(
    config: EngineConfig, shape: ModelShape, profile: Profile, keep_token_times: bool
) -> Replica:
    """Create one simulated replica; see ``make_cluster``. Does not check the profile."""
    scheduler = make_scheduler(config, shape, profile, keep_learned=False)
    return Replica(scheduler, profile.cost, keep_token_times=keep_token_times)


def make_scheduler(
    config: EngineConfig, shape: ModelShape, profile: Profile, *, keep_learned: bool
) -> Scheduler:
    """Create the scheduler of an engine whose steps take as long as the profile predicts.

    Args:
        keep_learned: whether a predictor that learns may read and write its file.
    """
    return Scheduler.build(
        config,
        pools_of(config, shape, profile),
        block_bytes=block_bytes(shape, config.block_size, ELEMENT_BYTES[profile.dtype]),
        max_model_len=config.max_model_len or shape.max_position,
        cost=profile.cost,
        speed=lambda: Speed.of(profile.cost, config.max_batch_size),
        keep_learned=keep_learned,
    )


def check_profile(config: EngineConfig, shape: ModelShape, profile: Profile) -> None:
    """Raise ValueError if an engine on the profile's device would not start with these settings."""
    dtype = profile.dtype if config.dtype == "auto" else config.dtype
    profile.require(shape=shape, device=profile.device, dtype=dtype)
    if config.device != "auto" and (config.device == "cpu") != profile.on_cpu:
        raise ValueError(
            f"the profile is of {profile.device}, which is not the device {config.device}: give another "
            "--profile, or leave out --device"
        )
    if config.max_model_len is not None and config.max_model_len > shape.max_position:
        raise ValueError(
            f"max_model_len {config.max_model_len} is more than this model's maximum of {shape.max_position} "
            "tokens: lower --max-model-len"
        )


def pools_of(config: EngineConfig, shape: ModelShape, profile: Profile) -> Pools:
    """Return the blocks of the two pools that an engine would have with enough memory.

    An analytic profile contains the device's memory, so the device pool is what weights and the largest step
    leave of ``gpu_memory_utilization``. A measured profile does not contain the free memory of its machine,
    so memory is assumed to be no limit. By default, the device pool of a CPU has ``CPU_POOL_LIMIT_BYTES``.
    The host pool is four times the device pool; with a GPU it has at most ``PINNED_LIMIT_BYTES``.

    Raises ValueError if the device has too little memory, or if the profile was measured on a GPU and
    ``num_device_blocks`` is not set.
    """
    per_block = block_bytes(shape, config.block_size, ELEMENT_BYTES[profile.dtype])
    device = config.num_device_blocks
    if profile.analytic is not None:
        memory = _memory_of(profile.analytic.spec, config, shape, ELEMENT_BYTES[profile.dtype])
        if memory.taken + (DUMMY_BLOCKS + 1) * per_block > memory.total:
            raise ValueError(
                f"{config.model} does not fit on {profile.device}: {listed(memory.parts)} and a KV block of "
                f"{size(per_block)} are more than its {size(memory.total)}: {memory.advice}"
            )
        device = device_blocks_on_gpu(config, per_block, memory)
    if device is None:
        if not profile.on_cpu:
            raise ValueError(
                f"the profile does not contain the memory size of {profile.device}: give --num-device-blocks "
                f"(a block of {config.block_size} tokens takes {per_block:,} bytes)"
            )
        device = max(1, CPU_POOL_LIMIT_BYTES // per_block)
    if config.swap_space_bytes is not None:
        return Pools(device, config.swap_space_bytes // per_block)
    limit_bytes = sys.maxsize if profile.on_cpu else PINNED_LIMIT_BYTES
    return Pools(device, default_host_blocks(config, device, per_block, limit_bytes))


def _memory_of(spec: DeviceSpec, config: EngineConfig, shape: ModelShape, element_bytes: int) -> GpuMemory:
    """Return the memory of a device and what weights and the largest step take of it."""
    return GpuMemory(
        total=spec.memory_bytes,
        outside=0,
        weights=shape.num_parameters * element_bytes,
        activations=step_bytes(config, shape, element_bytes),
    )


def pools_in_words(config: EngineConfig, shape: ModelShape, profile: Profile) -> str:
    """Describe the pools of ``pools_of``, and the assumption about memory, in one line."""
    pools = pools_of(config, shape, profile)
    per_block = block_bytes(shape, config.block_size, ELEMENT_BYTES[profile.dtype])
    longest = min(TYPICAL_REQUEST_TOKENS, config.max_model_len or shape.max_position)
    has_default = config.swap_space_bytes is None and config.copies_to_host
    parts: dict[str, int] = {}
    if profile.analytic is not None:
        parts = _memory_of(profile.analytic.spec, config, shape, ELEMENT_BYTES[profile.dtype]).parts
    else:
        has_default |= config.num_device_blocks is None
    line = division(parts, pools, config.block_size, per_block, longest)
    return f"{line}; assumed: memory enough for the default pools" if has_default else line
