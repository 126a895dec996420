"""How many KV blocks fit: arithmetic over bytes somebody else has measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fgengine.config import EngineConfig
from fgengine.model.shape import ModelShape
from fgengine.units import size

GIB = 1024**3
CPU_POOL_LIMIT_BYTES = 2 * GIB
"""A CPU's device pool grows no further by itself: beyond this a laptop's memory serves better elsewhere."""
HOST_POOL_RATIO = 4
"""Host pool per device pool, by default: room for the requests that a burst leaves half done, which are
otherwise thrown away and computed again."""
MIN_HOST_POOL_BYTES = 2 * GIB
"""The default host pool where four times the device pool is less. A device pool made small by hand should not
make the host pool small too."""
PINNED_SHARE = 0.25
"""Of the free memory, what a GPU's host pool takes by default. It is pinned: the system can neither swap it
nor give it to others for as long as the engine runs, and the weights' files want to stay cached."""
PINNED_LIMIT_BYTES = 32 * GIB
"""And no more than this: pinning goes at some 3 GB/s, so 32 GiB take about ten seconds of each start."""
TYPICAL_REQUEST_TOKENS = 512
"""What pools are counted in for people: a ShareGPT conversation has 427 tokens of prompt and answer on
average (median 365; three quarters have at most 571)."""
DUMMY_BLOCKS = 1
"""Blocks of the device pool that no request ever gets: rows that only fill up a batch write there."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Bytes of a GPU, and what takes them besides KV."""

    total: int
    outside: int
    """What other processes hold, and CUDA itself: its context, kernels and libraries."""
    weights: int
    """And whatever else stays, such as the workspaces of matrix multiplications."""
    activations: int = 0
    """The most a step takes while it runs."""
    graphs: int = 0
    """What the CUDA graphs of decode steps compute in."""

    @property
    def taken(self) -> int:
        return self.outside + self.weights + self.activations + self.graphs

    @property
    def parts(self) -> dict[str, int]:
        """What takes how much, by name."""
        parts = {
            "weights": self.weights,
            "activations": self.activations,
            "CUDA graphs": self.graphs,
            "other processes and CUDA itself": self.outside,
        }
        return {name: part for name, part in parts.items() if part}

    @property
    def advice(self) -> str:
        """What to do about the largest of them."""
        largest = max(self.outside, self.weights, self.activations)
        if largest == self.outside:
            return "end the other processes on this GPU"
        if largest == self.weights:
            return "choose a smaller model"
        return "lower max_tokens_per_batch or max_batch_size"


def block_bytes(shape: ModelShape, block_size: int, element_bytes: int) -> int:
    """Bytes of one KV block over all layers."""
    return block_size * shape.kv_bytes_per_token(element_bytes)


@dataclass(frozen=True, slots=True)
class Pools:
    """Blocks of the two pools."""

    device: int
    host: int


def pools_on_cpu(config: EngineConfig, bytes_per_block: int, available: int) -> Pools:
    """The two pools where both are in the system's memory, of which ``available`` bytes are free.

    What is not set by hand takes no more than ``gpu_memory_utilization`` of it, the device pool first: on
    a CPU a block there is worth more than one in the host pool. A pool takes memory only once it is written,
    but it may all be written, so the two together never exceed ``available``.

    Raises:
        ValueError: not even one device block fits, or not as much as was set by hand.
    """
    usable = int(available * config.gpu_memory_utilization) - DUMMY_BLOCKS * bytes_per_block
    by_hand = config.swap_space_bytes
    device = config.num_device_blocks
    if device is None:
        device = min(usable - (by_hand or 0), CPU_POOL_LIMIT_BYTES) // bytes_per_block
    if device < 1:
        beside = f" beside a host pool of {size(by_hand)}" if by_hand else ""
        remedy = "lower swap_space, " if by_hand else ""
        raise ValueError(
            f"no memory is left for the KV pool{beside}: a block takes {size(bytes_per_block)} of the "
            f"{size(available)} that are free; {remedy}choose a smaller model or end other programs"
        )
    host = default_host_blocks(config, device, bytes_per_block, usable - device * bytes_per_block)
    if by_hand is not None:
        host = by_hand // bytes_per_block
    if (device + DUMMY_BLOCKS + host) * bytes_per_block > available:
        raise ValueError(
            f"the pools do not fit: {device:,} device blocks of {size(device * bytes_per_block)} and "
            f"{size(host * bytes_per_block)} of swap space are more than the {size(available)} of memory "
            f"that are free; lower {'num_device_blocks' if device >= host else 'swap_space'}"
        )
    return Pools(device, host)


def device_blocks_on_gpu(config: EngineConfig, bytes_per_block: int, gpu: GpuMemory) -> int:
    """Blocks of the device pool: as many as asked for, else what ``gpu_memory_utilization`` leaves.

    Raises:
        ValueError: not even one fits, or not as many as asked for.
    """
    wanted = config.num_device_blocks

    def fitting(share: float) -> int:
        return (int(gpu.total * share) - gpu.taken) // bytes_per_block - DUMMY_BLOCKS

    if wanted is None and (most := fitting(config.gpu_memory_utilization)) >= 1:
        return most
    most = fitting(1.0)
    if wanted is not None and most >= wanted:
        return wanted
    if wanted is not None and most >= 1:
        raise ValueError(
            f"num_device_blocks {wanted:,} would take {size(wanted * bytes_per_block)} of the GPU's "
            f"{size(gpu.total)}, beside {listed(gpu.parts)}: lower it to {most:,} or less"
        )
    usable = "" if wanted else f"{config.gpu_memory_utilization:.0%} of "
    remedy = f"raise gpu_memory_utilization, or {gpu.advice}" if most >= 1 else gpu.advice
    raise ValueError(
        f"no memory is left for the KV pool: of {usable}the GPU's {size(gpu.total)}, {listed(gpu.parts)} are "
        f"taken, and a block takes {size(bytes_per_block)}; {remedy}"
    )


def host_blocks_beside_gpu(
    config: EngineConfig, device_blocks: int, bytes_per_block: int, available: int
) -> int:
    """Blocks of the host pool of a GPU: as set by hand, else as far as a share of the system's ``available``
    bytes allows."""
    if config.swap_space_bytes is not None:
        return config.swap_space_bytes // bytes_per_block
    most = min(int(available * PINNED_SHARE), PINNED_LIMIT_BYTES)
    return default_host_blocks(config, device_blocks, bytes_per_block, most)


def default_host_blocks(
    config: EngineConfig, device_blocks: int, bytes_per_block: int, most_bytes: int
) -> int:
    """Blocks of a host pool that is not set by hand, in at most ``most_bytes``."""
    if not config.copies_to_host:
        return 0
    wanted = max(HOST_POOL_RATIO * device_blocks * bytes_per_block, MIN_HOST_POOL_BYTES)
    return max(0, min(wanted, most_bytes)) // bytes_per_block


def division(
    parts: Mapping[str, int],
    pools: Pools,
    block_size: int,
    bytes_per_block: int,
    request_tokens: int = TYPICAL_REQUEST_TOKENS,
) -> str:
    """How the memory was divided, in a line.

    Args:
        parts: bytes by name, as ``GpuMemory.parts``.
        request_tokens: prompt and output of the requests that the pools are counted in.
    """

    def pool(name: str, blocks: int) -> str:
        tokens = blocks * block_size
        whole = tokens // request_tokens
        count = f"about {whole:,} request{'s' if whole > 1 else ''}" if whole else "less than a request"
        return (
            f"{name} {size(blocks * bytes_per_block)} = {blocks:,} blocks "
            f"({tokens:,} tokens, {count} of {request_tokens} tokens)"
        )

    named = [("KV pool", pools.device), ("host pool", pools.host)]
    return ", ".join(
        [f"{name} {size(part)}" for name, part in parts.items()] + [pool(*p) for p in named if p[1]]
    )


def listed(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size(part)}" for name, part in parts.items())
