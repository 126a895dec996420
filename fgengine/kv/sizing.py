"""How many KV blocks fit: arithmetic over bytes somebody else has measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fgengine.config import EngineConfig
from fgengine.model.shape import ModelShape

CPU_POOL_LIMIT_BYTES = 2 * 1024**3
"""A CPU's device pool grows no further by itself: beyond this a laptop's memory serves better elsewhere."""
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


def device_blocks_on_cpu(config: EngineConfig, bytes_per_block: int, available: int) -> int:
    """Blocks of the device pool, given the bytes available after loading.

    Raises:
        ValueError: not even one fits.
    """
    budget = min(int(available * config.device_memory_utilization), CPU_POOL_LIMIT_BYTES)
    blocks = config.num_device_blocks or budget // bytes_per_block
    if blocks < 1:
        raise ValueError(
            f"no memory is left for the KV pool: a block takes {bytes_per_block} bytes of {budget}; "
            "raise device_memory_utilization, set num_device_blocks or choose a smaller model"
        )
    return blocks


def device_blocks_on_gpu(config: EngineConfig, bytes_per_block: int, gpu: GpuMemory) -> int:
    """Blocks of the device pool: as many as asked for, else what ``device_memory_utilization`` leaves.

    Raises:
        ValueError: not even one fits, or not as many as asked for.
    """
    wanted = config.num_device_blocks

    def fitting(share: float) -> int:
        return (int(gpu.total * share) - gpu.taken) // bytes_per_block - DUMMY_BLOCKS

    if wanted is None and (most := fitting(config.device_memory_utilization)) >= 1:
        return most
    most = fitting(1.0)
    if wanted is not None and most >= wanted:
        return wanted
    if wanted is not None and most >= 1:
        raise ValueError(
            f"num_device_blocks {wanted:,} would take {size(wanted * bytes_per_block)} of the GPU's "
            f"{size(gpu.total)}, beside {listed(gpu.parts)}: lower it to {most:,} or less"
        )
    usable = "" if wanted else f"{config.device_memory_utilization:.0%} of "
    remedy = f"raise device_memory_utilization, or {gpu.advice}" if most >= 1 else gpu.advice
    raise ValueError(
        f"no memory is left for the KV pool: of {usable}the GPU's {size(gpu.total)}, {listed(gpu.parts)} are "
        f"taken, and a block takes {size(bytes_per_block)}; {remedy}"
    )


def host_blocks(config: EngineConfig, bytes_per_block: int) -> int:
    return config.swap_space_bytes // bytes_per_block


def division(
    parts: Mapping[str, int], device_blocks: int, host_blocks: int, block_size: int, bytes_per_block: int
) -> str:
    """How the memory was divided, in a line: ``parts`` as ``GpuMemory.parts``, and the two pools."""

    def pool(blocks: int) -> str:
        tokens = blocks * block_size
        return f"{size(blocks * bytes_per_block)} = {blocks:,} blocks ({tokens:,} tokens)"

    host = f", host pool {pool(host_blocks)}" if host_blocks else ""
    return f"{listed(parts)}, KV pool {pool(device_blocks)}{host}"


def listed(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size(part)}" for name, part in parts.items())


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1024**3:,.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:,.1f} MiB"
