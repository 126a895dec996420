"""Computes how many KV blocks fit, from byte counts that the caller has measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fgengine.config import EngineConfig
from fgengine.model.shape import ModelShape
from fgengine.units import size

GIB = 1024**3
CPU_POOL_LIMIT_BYTES = 2 * GIB
"""Default limit of the device pool on a CPU, so that other programs on a laptop keep enough memory."""
HOST_POOL_RATIO = 4
"""Default size of the host pool relative to the device pool. It holds the requests that a burst leaves partly
done; otherwise their KV would be discarded and recomputed."""
MIN_HOST_POOL_BYTES = 2 * GIB
"""Minimum default size of the host pool, so that a small device pool set by an option does not make it
small."""
PINNED_SHARE = 0.25
"""Default share of the free memory for a GPU's host pool. This memory is pinned: other programs cannot use it
while the engine runs, and the weight files should remain in the page cache."""
PINNED_LIMIT_BYTES = 32 * GIB
"""Default limit of a GPU's host pool. Pinning runs at about 3 GB/s, so 32 GiB take about ten seconds at each
start."""
TYPICAL_REQUEST_TOKENS = 512
"""Prompt and output tokens of the request that messages use to describe pool sizes. A ShareGPT conversation
has 427 tokens on average (median 365; three quarters have at most 571)."""
DUMMY_BLOCKS = 1
"""Blocks of the device pool that no request gets; rows that pad a batch write there."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """The memory of a GPU and its uses other than KV, in bytes."""

    total: int
    outside: int
    """Memory of other processes and of CUDA itself (context, kernels, libraries)."""
    weights: int
    """Weights, and other permanent allocations such as the workspaces of matrix multiplications."""
    activations: int = 0
    """Maximum that a step needs while it runs."""
    graphs: int = 0
    """Memory of the CUDA graphs of decode steps."""

    @property
    def taken(self) -> int:
        """Sum of all uses."""
        return self.outside + self.weights + self.activations + self.graphs

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each use by name, without those that are 0."""
        parts = {
            "weights": self.weights,
            "activations": self.activations,
            "CUDA graphs": self.graphs,
            "other processes and CUDA itself": self.outside,
        }
        return {name: part for name, part in parts.items() if part}

    @property
    def advice(self) -> str:
        """A remedy against the largest use, for messages."""
        largest = max(self.outside, self.weights, self.activations)
        if largest == self.outside:
            return "end the other processes on this GPU"
        if largest == self.weights:
            return "choose a smaller model"
        return "lower max_tokens_per_batch or max_batch_size"


def block_bytes(shape: ModelShape, block_size: int, element_bytes: int) -> int:
    """Return the bytes of one KV block, all layers together.

    Args:
        block_size: tokens in a block.
        element_bytes: bytes of one element of the KV cache.
    """
    return block_size * shape.kv_bytes_per_token(element_bytes)


@dataclass(frozen=True, slots=True)
class Pools:
    """Numbers of blocks of the two pools."""

    device: int
    host: int


def pools_on_cpu(config: EngineConfig, bytes_per_block: int, available: int) -> Pools:
    """Return the sizes of the two pools on a CPU, where both are in the system's memory.

    Pools whose sizes are not set by options take at most the share ``gpu_memory_utilization`` of
    ``available``. The device pool is sized first, because on a CPU its blocks are worth more. The two pools
    together never exceed ``available``, although a pool takes memory only when it is written.

    Args:
        available: free bytes of the system's memory.

    Raises ValueError if not even one device block fits, or if sizes set by options do not fit.
    """
    usable = int(available * config.gpu_memory_utilization) - DUMMY_BLOCKS * bytes_per_block
    host_bytes = config.swap_space_bytes
    device = config.num_device_blocks
    if device is None:
        device = min(usable - (host_bytes or 0), CPU_POOL_LIMIT_BYTES) // bytes_per_block
    if device < 1:
        host_pool = f" with a host pool of {size(host_bytes)}" if host_bytes else ""
        remedy = "lower swap_space, " if host_bytes else ""
        raise ValueError(
            f"no memory is left for the KV pool{host_pool}: a block takes {size(bytes_per_block)} of the "
            f"{size(available)} that are free; {remedy}choose a smaller model or end other programs"
        )
    host = default_host_blocks(config, device, bytes_per_block, usable - device * bytes_per_block)
    if host_bytes is not None:
        host = host_bytes // bytes_per_block
    if (device + DUMMY_BLOCKS + host) * bytes_per_block > available:
        raise ValueError(
            f"the pools do not fit: {device:,} device blocks of {size(device * bytes_per_block)} and "
            f"{size(host * bytes_per_block)} of swap space are more than the {size(available)} of memory "
            f"that are free; lower {'num_device_blocks' if device >= host else 'swap_space'}"
        )
    return Pools(device, host)


def device_blocks_on_gpu(config: EngineConfig, bytes_per_block: int, gpu: GpuMemory) -> int:
    """Return the blocks of the device pool on a GPU.

    It is ``num_device_blocks`` if set, else the number that fits into the share ``gpu_memory_utilization``.

    Raises ValueError if not even one block fits, or fewer than ``num_device_blocks``.
    """
    wanted = config.num_device_blocks

    def fitting(share: float) -> int:
        """Return the blocks that fit into this share of the GPU's memory."""
        return (int(gpu.total * share) - gpu.taken) // bytes_per_block - DUMMY_BLOCKS

    if wanted is None and (default := fitting(config.gpu_memory_utilization)) >= 1:
        return default
    limit = fitting(1.0)
    if wanted is not None and limit >= wanted:
        return wanted
    if wanted is not None and limit >= 1:
        raise ValueError(
            f"num_device_blocks {wanted:,} would take {size(wanted * bytes_per_block)} of the GPU's "
            f"{size(gpu.total)}, in addition to {listed(gpu.parts)}: lower it to {limit:,} or less"
        )
    usable = "" if wanted else f"{config.gpu_memory_utilization:.0%} of "
    remedy = f"raise gpu_memory_utilization, or {gpu.advice}" if limit >= 1 else gpu.advice
    raise ValueError(
        f"no memory is left for the KV pool: of {usable}the GPU's {size(gpu.total)}, {listed(gpu.parts)} are "
        f"taken, and a block takes {size(bytes_per_block)}; {remedy}"
    )


def gpu_host_blocks(config: EngineConfig, device_blocks: int, bytes_per_block: int, available: int) -> int:
    """Return the blocks of a GPU's host pool.

    It is ``swap_space`` if set, else the default within ``PINNED_SHARE`` of the system's ``available`` bytes.
    """
    if config.swap_space_bytes is not None:
        return config.swap_space_bytes // bytes_per_block
    limit_bytes = min(int(available * PINNED_SHARE), PINNED_LIMIT_BYTES)
    return default_host_blocks(config, device_blocks, bytes_per_block, limit_bytes)


def default_host_blocks(
    config: EngineConfig, device_blocks: int, bytes_per_block: int, limit_bytes: int
) -> int:
    """Return the default number of blocks of a host pool, which takes at most ``limit_bytes``."""
    if not config.copies_to_host:
        return 0
    wanted = max(HOST_POOL_RATIO * device_blocks * bytes_per_block, MIN_HOST_POOL_BYTES)
    return max(0, min(wanted, limit_bytes)) // bytes_per_block


def division(
    parts: Mapping[str, int],
    pools: Pools,
    block_size: int,
    bytes_per_block: int,
    request_tokens: int = TYPICAL_REQUEST_TOKENS,
) -> str:
    """Describe in one line how the memory is divided.

    Args:
        parts: bytes by name, as in ``GpuMemory.parts``.
        request_tokens: prompt and output tokens of the typical request that is used to describe pool sizes.
    """

    def pool(name: str, blocks: int) -> str:
        tokens = blocks * block_size
        requests = tokens // request_tokens
        count = (
            f"about {requests:,} request{'s' if requests > 1 else ''}" if requests else "less than a request"
        )
        return (
            f"{name} {size(blocks * bytes_per_block)} = {blocks:,} blocks "
            f"({tokens:,} tokens, {count} of {request_tokens} tokens)"
        )

    named = [("KV pool", pools.device), ("host pool", pools.host)]
    return ", ".join(
        [f"{name} {size(part)}" for name, part in parts.items()] + [pool(*p) for p in named if p[1]]
    )


def listed(parts: Mapping[str, int]) -> str:
    """Return the parts as text, such as "weights 2 GiB, activations 300 MiB"."""
    return ", ".join(f"{name} {size(part)}" for name, part in parts.items())
