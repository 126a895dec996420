"""From an engine's settings and a profile to simulated copies of that engine."""

from __future__ import annotations

from fgengine.config import EngineConfig
from fgengine.kv.manager import KVManager
from fgengine.kv.sizing import CPU_POOL_LIMIT_BYTES, block_bytes, host_blocks
from fgengine.model.shape import ModelShape
from fgengine.profile import ELEMENT_BYTES, Profile
from fgengine.scheduling.draft import Limits
from fgengine.scheduling.policy import PolicyContext, make_policy, policy_class
from fgengine.scheduling.predictor import make_predictor
from fgengine.scheduling.queue_limit import QueueLimit
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
    per_block = block_bytes(shape, config.block_size, ELEMENT_BYTES[profile.dtype])
    num_blocks = device_blocks(config, profile, per_block)
    wants_prediction = policy_class(config.policy).needs_predictor
    predictor = make_predictor(config.predictor, config.model, keep=False) if wants_prediction else None
    context = PolicyContext(profile.cost, config.starvation_limit, config.max_batch_size, predictor)
    scheduler = Scheduler(
        make_policy(config.policy, context),
        KVManager(num_blocks, host_blocks(config, per_block), config.block_size),
        Limits(
            max_batch_size=config.max_batch_size,
            max_tokens_per_batch=config.max_tokens_per_batch,
            chunked_prefill=config.chunked_prefill,
            max_model_len=config.max_model_len or shape.max_position,
            block_bytes=per_block,
        ),
        offloading=config.offloading,
        cost=profile.cost,
        queue=QueueLimit.of(config, lambda: Speed.of(profile.cost, config.max_batch_size)),
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


def device_blocks(config: EngineConfig, profile: Profile, per_block: int) -> int:
    """Blocks of the device pool of ``per_block`` bytes each.

    Raises:
        ValueError: the profile is of a GPU, whose memory it does not tell.
    """
    if config.num_device_blocks is not None:
        return config.num_device_blocks
    if not profile.on_cpu:
        raise ValueError(
            f"the profile does not say how much memory {profile.device} has: give --num-device-blocks "
            f"(a block of {config.block_size} tokens takes {per_block:,} bytes)"
        )
    return max(1, CPU_POOL_LIMIT_BYTES // per_block)
