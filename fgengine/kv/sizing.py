"""How many KV blocks fit: arithmetic over bytes somebody else has measured. Pure."""

from __future__ import annotations

from fgengine.config import EngineConfig
from fgengine.model.shape import ModelShape

CPU_POOL_LIMIT_BYTES = 2 * 1024**3
"""A CPU's device pool grows no further by itself: beyond this a laptop's memory serves better elsewhere."""


def block_bytes(shape: ModelShape, block_size: int, element_bytes: int) -> int:
    """Bytes of one KV block over all layers."""
    return block_size * shape.kv_bytes_per_token(element_bytes)


def activation_bytes(shape: ModelShape, config: EngineConfig, element_bytes: int) -> int:
    """What a step's intermediate values take at most, roughly: the widest layer's and the logits'.

    Twelve vectors of the hidden size and three of the inner one are alive at once for each token; logits are
    also held in float32 while sampling, some three times over.
    """
    token = (12 * shape.hidden_size + 3 * shape.intermediate_size) * element_bytes
    logits = shape.vocab_size * (element_bytes + 3 * 4)
    return config.max_tokens_per_batch * token + config.max_batch_size * logits


def device_blocks_on_cpu(config: EngineConfig, bytes_per_block: int, available: int) -> int:
    """Blocks of the device pool, given the bytes available after loading.

    Raises:
        ValueError: not even one fits.
    """
    budget = min(int(available * config.device_memory_utilization), CPU_POOL_LIMIT_BYTES)
    return _at_least_one(config.num_device_blocks or budget // bytes_per_block, bytes_per_block, budget)


def device_blocks_on_gpu(
    config: EngineConfig, bytes_per_block: int, free: int, total: int, activations: int
) -> int:
    """Blocks of the device pool, given the GPU's free and total bytes after loading.

    Raises:
        ValueError: not even one fits.
    """
    budget = int(total * config.device_memory_utilization) - (total - free) - activations
    return _at_least_one(config.num_device_blocks or budget // bytes_per_block, bytes_per_block, budget)


def host_blocks(config: EngineConfig, bytes_per_block: int) -> int:
    return config.swap_space_bytes // bytes_per_block


def _at_least_one(blocks: int, bytes_per_block: int, budget: int) -> int:
    if blocks < 1:
        raise ValueError(
            f"no memory is left for the KV pool: a block takes {bytes_per_block} bytes of {max(budget, 0)}; "
            "raise device_memory_utilization, set num_device_blocks or choose a smaller model"
        )
    return blocks
