"""Whether a model fits into the memory that is free, before anything is loaded: arithmetic. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from fgengine.config import EngineConfig
from fgengine.kv.sizing import (
    DUMMY_BLOCKS,
    GIB,
    TYPICAL_REQUEST_TOKENS,
    block_bytes,
    listed,
)
from fgengine.model.shape import ModelShape
from fgengine.units import size

CPU_OVERHEAD_BYTES = 128 * 1024**2
"""Beyond weights and tensors: the allocator's slack, threads, compiled kernels. 20 to 80 MiB were measured.
"""
SAMPLING_BYTES = 32
"""For each logit of a step, while tokens are drawn: wide copies, their order, a cumulative sum in float64."""

BY_HAND_BLOCKS, BY_HAND_SWAP = "device blocks", "swap space"
"""Names of the parts that a setting asks for."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one memory, and how many of them are free."""

    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Where a model is to run."""

    host: Memory
    """The system's memory."""
    gpu: Memory | None = None
    """None: on the CPU."""

    @property
    def memory(self) -> Memory:
        """The one that weights and device pool are in."""
        return self.gpu or self.host

    @property
    def place(self) -> str:
        return "on the GPU" if self.gpu else "into memory"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model as it would run."""

    name: str
    shape: ModelShape
    element_bytes: int
    """Of weights and KV."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a model needs so that it can be loaded and serve one request."""

    parts: Mapping[str, int]
    """What it takes while it serves, by name, where weights and device pool are."""
    loading: Mapping[str, int] = field(default_factory=dict)
    """The same at its most while it is loaded."""
    pinned: int = 0
    """Of a GPU's host pool, where its size was set by hand."""

    @property
    def most(self) -> Mapping[str, int]:
        """Of the two, what takes more."""
        return max(self.parts, self.loading, key=lambda parts: sum(parts.values()))

    @property
    def total(self) -> int:
        return sum(self.most.values())

    def fits(self, machine: Machine) -> bool:
        return self.total <= machine.memory.free and self.pinned <= machine.host.free


def need_of(model: Candidate, config: EngineConfig, machine: Machine) -> Need:
    """On a GPU weights and pools only: what steps take there is measured once the model is loaded."""
    shape, element_bytes = model.shape, model.element_bytes
    per_block = block_bytes(shape, config.block_size, element_bytes)
    longest = min(config.max_model_len or shape.max_position, TYPICAL_REQUEST_TOKENS)
    blocks = config.num_device_blocks or -(-longest // config.block_size)
    pool_name = BY_HAND_BLOCKS if config.num_device_blocks else f"KV of a request of {longest} tokens"
    pool = {pool_name: (blocks + DUMMY_BLOCKS) * per_block}
    swap_space = config.swap_space_bytes or 0
    if machine.gpu is not None:
        return Need({"weights": shape.num_parameters * element_bytes} | pool, pinned=swap_space)
    weights = cpu_weight_bytes(shape, element_bytes)
    parts = {
        "weights": weights,
        "a step": step_bytes(config, shape, element_bytes) + CPU_OVERHEAD_BYTES,
        **pool,
        **({BY_HAND_SWAP: swap_space} if swap_space else {}),
    }
    # Each layer's weight is there twice while it is reordered.
    reordering = _largest_linear(shape) * element_bytes + CPU_OVERHEAD_BYTES
    return Need(parts, loading={"weights": weights, "reordering the largest of them": reordering})


def cpu_weight_bytes(shape: ModelShape, element_bytes: int) -> int:
    """Of a loaded model: linear layers are reordered for the CPU, and a tied embedding is held both ways."""
    tied = shape.vocab_size * (shape.embed_dim or shape.hidden_size) if shape.tied_embeddings else 0
    return (shape.num_parameters + tied) * element_bytes


def step_bytes(config: EngineConfig, shape: ModelShape, element_bytes: int) -> int:
    """What the largest step takes at most while it runs on a CPU, besides weights and KV: from a little above
    what was measured to twice that."""
    longest = config.max_model_len or shape.max_position
    tokens = min(config.max_tokens_per_batch, config.max_batch_size * longest)
    of_token = (4 * shape.hidden_size + 2 * _qkv(shape) + 3 * _inner(shape)) * element_bytes
    rows = min(config.max_batch_size, config.max_tokens_per_batch)
    return tokens * of_token + rows * shape.vocab_size * SAMPLING_BYTES


def _qkv(shape: ModelShape) -> int:
    """Queries, keys and values of a token, elements."""
    return (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim


def _inner(shape: ModelShape) -> int:
    """What a token's MLP computes at its widest, elements; the Llama family's gate and up are one matrix."""
    return shape.intermediate_size * (2 if shape.family == "llama" else 1)


def _largest_linear(shape: ModelShape) -> int:
    """Elements of the largest matrix of one linear layer."""
    head = 0 if shape.tied_embeddings else shape.vocab_size
    return max(_qkv(shape), _inner(shape), head) * shape.hidden_size


def shortage(
    model: Candidate, config: EngineConfig, machine: Machine, others: Iterable[Candidate]
) -> str | None:
    """Why the model cannot run with these settings on that machine, and what could; None: it can.

    Args:
        others: what else there is to choose, such as the catalog.
    """
    as_asked = need_of(model, config, machine)
    if as_asked.fits(machine):
        return None
    by_rule = replace(config, num_device_blocks=None, swap_space=None)
    need = need_of(model, by_rule, machine)
    if need.fits(machine):
        return _pools_too_large(model, config, machine, as_asked)
    memory = machine.memory
    whose = "the GPU's" if machine.gpu else "the machine's"
    remedies = ["end what else takes memory there"] if need.total <= memory.total else []
    if need.parts.get("a step", 0) > need.parts["weights"]:
        remedies.append("lower max_tokens_per_batch or max_batch_size")
    remedies.append(_largest(others, by_rule, machine))
    return (
        f"{model.name} does not fit {machine.place}: it needs {size(need.total)} ({listed(need.most)}), and "
        f"{size(memory.free)} of {whose} {size(memory.total)} are free; {', or '.join(remedies)}"
    )


def _largest(others: Iterable[Candidate], config: EngineConfig, machine: Machine) -> str:
    fitting = [other for other in others if need_of(other, config, machine).fits(machine)]
    if not fitting:
        return "no model of the catalog fits there now"
    largest = max(fitting, key=lambda other: other.shape.num_parameters)
    needs = size(need_of(largest, config, machine).total)
    return f"choose a smaller model: the largest of the catalog that fits is {largest.name} ({needs})"


def _pools_too_large(model: Candidate, config: EngineConfig, machine: Machine, need: Need) -> str:
    """The settings by hand that ask for too much, and how much would be possible."""
    if need.pinned > machine.host.free:
        return (
            f"swap_space {size(need.pinned)} is more than the {size(machine.host.free)} of memory that are "
            "free; lower it"
        )
    blocks, swap = need.parts.get(BY_HAND_BLOCKS, 0), need.parts.get(BY_HAND_SWAP, 0)
    fixed = {n: part for n, part in need.parts.items() if n not in (BY_HAND_BLOCKS, BY_HAND_SWAP)}
    left = machine.memory.free - sum(fixed.values())
    asked = [f"num_device_blocks {config.num_device_blocks:,} takes {size(blocks)}"] if blocks else []
    asked += [f"swap_space takes {size(swap)}"] if swap else []
    if min(blocks, swap) >= left:
        remedy = "lower both"
    elif swap > blocks:
        remedy = f"lower swap_space to {math.floor((left - blocks) / GIB * 10) / 10:.1f} GiB or less"
    else:
        per_block = block_bytes(model.shape, config.block_size, model.element_bytes)
        most = (left - swap) // per_block - DUMMY_BLOCKS
        # Of a GPU steps take their part as well, and only the loaded model says how much.
        most_or_less = f"less than {most:,}" if machine.gpu else f"{most:,} or less"
        remedy = f"lower num_device_blocks to {most_or_less}"
    where = "the GPU's" if machine.gpu else "the machine's"
    return (
        f"{' and '.join(asked)}, but of {where} memory {size(machine.memory.free)} are free and "
        f"{listed(fixed)} are needed besides; {remedy}"
    )
