"""Computes whether a model fits into the free memory before anything is loaded. Pure."""

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
"""Memory in addition to weights and tensors: allocator overhead, threads, compiled kernels. Measured: 20 to
80 MiB."""
SAMPLING_BYTES = 32
"""Bytes for each logit of a step during sampling: float64 copies, sort indices, cumulative sums."""

CONFIGURED_BLOCKS, CONFIGURED_SWAP = "device blocks", "swap space"
"""Names of the parts whose size is set by an option."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Free and total bytes of one memory."""

    free: int
    total: int


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine on which a model will run."""

    host: Memory
    """The system's memory."""
    gpu: Memory | None = None
    """The GPU's memory; None: the model runs on the CPU."""

    @property
    def memory(self) -> Memory:
        """The memory that holds the weights and the device pool."""
        return self.gpu or self.host

    @property
    def place(self) -> str:
        """Where the model must fit, for messages."""
        return "on the GPU" if self.gpu else "into memory"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model with the number format in which it would run."""

    name: str
    shape: ModelShape
    element_bytes: int
    """Bytes of one element of weights and KV."""


@dataclass(frozen=True, slots=True)
class Need:
    """The bytes that a model needs to be loaded and to serve one request."""

    parts: Mapping[str, int]
    """Bytes by name while the model serves, in the memory of weights and device pool."""
    loading: Mapping[str, int] = field(default_factory=dict)
    """Peak bytes by name while the model is loaded, in the same memory."""
    pinned: int = 0
    """Bytes of a GPU's host pool if its size is set by an option."""

    @property
    def peak(self) -> Mapping[str, int]:
        """The parts of the peak: ``parts`` or ``loading``, whichever is larger in total."""
        return max(self.parts, self.loading, key=lambda parts: sum(parts.values()))

    @property
    def total(self) -> int:
        """Peak bytes."""
        return sum(self.peak.values())

    def fits(self, machine: Machine) -> bool:
        """Whether the machine has enough free memory."""
        return self.total <= machine.memory.free and self.pinned <= machine.host.free


def need_of(model: Candidate, config: EngineConfig, machine: Machine) -> Need:
    """Return the memory that the model needs with these settings.

    For a GPU it counts only weights and pools; the memory of a step is measured there after loading.
    """
    shape, element_bytes = model.shape, model.element_bytes
    per_block = block_bytes(shape, config.block_size, element_bytes)
    longest = min(config.max_model_len or shape.max_position, TYPICAL_REQUEST_TOKENS)
    blocks = config.num_device_blocks or -(-longest // config.block_size)
    pool_name = CONFIGURED_BLOCKS if config.num_device_blocks else f"KV of a request of {longest} tokens"
    pool = {pool_name: (blocks + DUMMY_BLOCKS) * per_block}
    swap_space = config.swap_space_bytes or 0
    rope = {"rotary embedding": shape.rope_bytes} if shape.rope_bytes else {}
    if machine.gpu is not None:
        return Need({"weights": shape.num_parameters * element_bytes} | rope | pool, pinned=swap_space)
    weights = cpu_weight_bytes(shape, element_bytes)
    parts = {
        "weights": weights,
        **rope,
        "a step": step_bytes(config, shape, element_bytes) + CPU_OVERHEAD_BYTES,
        **pool,
        **({CONFIGURED_SWAP: swap_space} if swap_space else {}),
    }
    # While a layer's weight is reordered, memory holds it twice. While the table of rotary embeddings is
    # computed, memory holds half of it twice.
    reordering = _largest_linear(shape) * element_bytes + CPU_OVERHEAD_BYTES
    rope = {name: part + part // 2 for name, part in rope.items()}
    return Need(parts, loading={"weights": weights, **rope, "reordering the largest of them": reordering})


def cpu_weight_bytes(shape: ModelShape, element_bytes: int) -> int:
    """Return the bytes of the weights on a CPU.

    Linear layers are reordered for the CPU, so a tied embedding is stored twice: as is and reordered.
    """
    tied = shape.vocab_size * (shape.embed_dim or shape.hidden_size) if shape.tied_embeddings else 0
    return (shape.num_parameters + tied) * element_bytes


def step_bytes(config: EngineConfig, shape: ModelShape, element_bytes: int) -> int:
    """Return an upper bound of the bytes that the largest step needs on a CPU, without weights and KV.

    The bound is between slightly above the measured value and twice that value.
    """
    longest = config.max_model_len or shape.max_position
    tokens = min(config.max_tokens_per_batch, config.max_batch_size * longest)
    bytes_per_token = (4 * shape.hidden_size + 2 * _qkv(shape) + 3 * _inner(shape)) * element_bytes
    rows = min(config.max_batch_size, config.max_tokens_per_batch)
    return tokens * bytes_per_token + rows * shape.vocab_size * SAMPLING_BYTES


def _qkv(shape: ModelShape) -> int:
    """Return the number of elements of a token's queries, keys and values."""
    return (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim


def _inner(shape: ModelShape) -> int:
    """Return the number of elements at the widest point of a token's MLP.

    In the Llama family the gate and up projections are one matrix.
    """
    return shape.intermediate_size * (2 if shape.family == "llama" else 1)


def _largest_linear(shape: ModelShape) -> int:
    """Return the number of elements of the largest linear layer's matrix."""
    head = 0 if shape.tied_embeddings else shape.vocab_size
    return max(_qkv(shape), _inner(shape), head) * shape.hidden_size


def shortage(
    model: Candidate, config: EngineConfig, machine: Machine, others: Iterable[Candidate]
) -> str | None:
    """Return why the model cannot run with these settings on that machine, and a remedy; None if it can.

    Args:
        others: alternative models to suggest, such as the catalog.
    """
    need_as_set = need_of(model, config, machine)
    if need_as_set.fits(machine):
        return None
    default_pools = replace(config, num_device_blocks=None, swap_space=None)
    need = need_of(model, default_pools, machine)
    if need.fits(machine):
        return _pools_too_large(model, config, machine, need_as_set)
    memory = machine.memory
    whose = "the GPU's" if machine.gpu else "the machine's"
    remedies = ["end other programs that use this memory"] if need.total <= memory.total else []
    if need.parts.get("a step", 0) > need.parts["weights"]:
        remedies.append("lower max_tokens_per_batch or max_batch_size")
    remedies.append(_largest(others, default_pools, machine))
    return (
        f"{model.name} does not fit {machine.place}: it needs {size(need.total)} ({listed(need.peak)}), and "
        f"{size(memory.free)} of {whose} {size(memory.total)} are free; {', or '.join(remedies)}"
    )


def _largest(others: Iterable[Candidate], config: EngineConfig, machine: Machine) -> str:
    """Return the remedy that suggests the largest model that fits."""
    fitting = [other for other in others if need_of(other, config, machine).fits(machine)]
    if not fitting:
        return "no model of the catalog fits now"
    largest = max(fitting, key=lambda other: other.shape.num_parameters)
    needs = size(need_of(largest, config, machine).total)
    return f"choose a smaller model: the largest of the catalog that fits is {largest.name} ({needs})"


def _pools_too_large(model: Candidate, config: EngineConfig, machine: Machine, need: Need) -> str:
    """Return the message for pool sizes that are set too large, with the possible sizes."""
    if need.pinned > machine.host.free:
        return (
            f"swap_space {size(need.pinned)} is more than the {size(machine.host.free)} of memory that are "
            "free: lower it"
        )
    blocks, swap = need.parts.get(CONFIGURED_BLOCKS, 0), need.parts.get(CONFIGURED_SWAP, 0)
    fixed = {n: part for n, part in need.parts.items() if n not in (CONFIGURED_BLOCKS, CONFIGURED_SWAP)}
    left = machine.memory.free - sum(fixed.values())
    causes = [f"num_device_blocks {config.num_device_blocks:,} takes {size(blocks)}"] if blocks else []
    causes += [f"swap_space takes {size(swap)}"] if swap else []
    if min(blocks, swap) >= left:
        remedy = "lower both"
    elif swap > blocks:
        remedy = f"lower swap_space to {math.floor((left - blocks) / GIB * 10) / 10:.1f} GiB or less"
    else:
        per_block = block_bytes(model.shape, config.block_size, model.element_bytes)
        limit = (left - swap) // per_block - DUMMY_BLOCKS
        # On a GPU, steps need memory as well; the amount is known only after loading.
        possible = f"less than {limit:,}" if machine.gpu else f"{limit:,} or less"
        remedy = f"lower num_device_blocks to {possible}"
    where = "the GPU's" if machine.gpu else "the machine's"
    return (
        f"{' and '.join(causes)}, but of {where} memory {size(machine.memory.free)} are free and "
        f"{listed(fixed)} are needed in addition: {remedy}"
    )
