"""Every operation a model does between its matrix multiplications, as inputs that show where it is wrong."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fgengine.ops.batch import RaggedBatch
from fgengine.ops.reference import TorchOps
from gpu.checks import Check

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Largest difference to plain torch in float32 on the same inputs, as a share of the truth's root mean
square. A value of four times that, rounded to bfloat16, is off by 0.016; TF32 for float32 is off by 0.001,
and one key left out of 1,000 moves the largest of some thousand outputs by 0.1."""
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Heads:
    """What attention and its cache go by."""

    name: str
    queries: int
    stored: int
    size: int
    block_size: int = 16
    rope: bool = True


@dataclass(frozen=True)
class Case:
    operation: str
    """The method's name."""
    about: str
    inputs: Callable[[torch.dtype, torch.device], Inputs]
    """Fresh ones, seeded."""
    call: Callable[[TorchOps, Inputs], Sequence[Tensor]]
    """Everything the operation gives or changes."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)


OPT_13B = Heads("OPT-13B", 40, 40, 128, rope=False)
LLAMA_3_8B = Heads("Llama-3-8B", 32, 8, 128)
SMOLLM2 = Heads("SmolLM2", 9, 3, 64, block_size=32)
OPT_2_7B = Heads("heads of 80", 32, 32, 80, block_size=32, rope=False)
TINY_HEADS = Heads("3 to 1 heads of 16", 6, 2, 16)

DECODES = [(n - 1, 1) for n in (1, 2, 15, 16, 17, 31, 32, 33, 255, 511, 512, 513, 1024, 2000)]
PREFILLS = [(0, n) for n in (2, 15, 16, 17, 33, 130, 512, 1024)]
CHUNKS = [(16, 16), (15, 2), (500, 64), (1000, 24), (1, 300)]
MIXES: dict[str, list[tuple[int, int]]] = {
    "decodes": DECODES,
    "64 decodes of 300": [(299, 1)] * 64,
    "prefills": PREFILLS,
    "chunks": CHUNKS,
    "a chunk beside decodes": [*DECODES, (496, 200), (0, 77)],
}
TINY_MIXES: dict[str, list[tuple[int, int]]] = {
    "decodes": [(n - 1, 1) for n in (1, 15, 16, 17, 40)],
    "prefills": [(0, 2), (0, 17), (0, 33)],
    "a chunk beside decodes": [(20, 1), (15, 1), (16, 5), (0, 9)],
}


def cases(tiny: bool) -> dict[str, list[Case]]:
    """By group, at the sizes of real models and at odd ones; ``tiny``: few and small, for the interpreter.

    A group is what one process compiles and checks, while others do the same with the other groups.
    """
    norms = [(1, 5120), (16, 5120), (128, 4096), (2048, 4096), (7, 576)]
    inner = [(1, 14336), (16, 14336), (128, 20480), (2048, 14336), (7, 1537)]
    groups = {
        "norms": list(_norms([(3, 96), (1, 64)] if tiny else norms)),
        "activations": list(_activations([(3, 96)] if tiny else inner)),
    }
    for heads in (TINY_HEADS,) if tiny else (OPT_13B, LLAMA_3_8B, SMOLLM2, OPT_2_7B):
        mixes = TINY_MIXES if tiny else MIXES
        # A kernel is compiled for each dtype and head size, seconds each: all dtypes for the two models, and
        # for the others the one in which a mistake shows most and the one that they are served in.
        common = heads in (OPT_13B, LLAMA_3_8B)
        dtypes = Case.dtypes if common else (torch.float32, torch.float16)
        everything = [item for mix in mixes.values() for item in mix]
        ropes = (False, True) if heads.rope else (False,)
        groups[heads.name] = [
            *(_write_kv(heads, everything, rope, dtypes) for rope in ropes),
            *(_attention(heads, about, items, dtypes) for about, items in mixes.items()),
        ]
    return groups


def checks(group: str, ops: TorchOps, device: torch.device) -> Iterator[Check]:
    """Dtype by dtype, so that time that runs short costs a dtype and no operation."""
    own = own_operations(type(ops))
    groups = cases(device.type != "cuda")
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        if dtype is torch.bfloat16 and device.type != "cuda":
            continue  # Triton's interpreter multiplies none
        for case in groups[group]:
            if dtype in case.dtypes and case.operation in own:
                yield Check(case.operation, case.about, dtype, partial(_right, case, ops, dtype, device))
    if group == next(iter(groups)):
        every = {case.operation for listed in groups.values() for case in listed}
        for name in sorted(own - every):
            yield Check(name, "-", torch.float32, lambda: (False, "there is no case for this operation"))


def own_operations(ops: type[TorchOps]) -> set[str]:
    """Those that it computes itself; the others are plain torch, which is the truth here."""
    return {name for name, value in vars(ops).items() if callable(value) and not name.startswith("_")}


def _right(case: Case, ops: TorchOps, dtype: torch.dtype, device: torch.device) -> tuple[bool, str]:
    error = judge(case, ops, dtype, device)
    return error <= TOLERANCE[dtype], f"off by {error:.2g} of {TOLERANCE[dtype]:g}"


def judge(case: Case, ops: TorchOps, dtype: torch.dtype, device: torch.device) -> float:
    """The largest difference to the truth, as a share of the truth's root mean square; infinite where a value
    is no number, or a shape or a dtype is another."""
    given = case.call(ops, case.inputs(dtype, device))
    with sdpa_kernel(SDPBackend.MATH):  # the others take short cuts
        truth = case.call(TorchOps(), _widened(case.inputs(dtype, device)))
    worst = 0.0
    for got, wanted in zip(given, truth, strict=True):
        if got.shape != wanted.shape or (wanted.is_floating_point() and got.dtype != dtype):
            return float("inf")
        wide, wanted = got.double(), wanted.double()
        both = wide.isnan() & wanted.isnan()  # memory that was poisoned, and that nothing was to write
        error = (wide - wanted).abs().masked_fill(both, 0.0)
        size = wanted[~wanted.isnan()].square().mean().sqrt()
        worst = max(worst, float(error.max() / size.clamp_min(1e-6)))
        if error.isnan().any():
            return float("inf")
    return worst


def _widened(inputs: Inputs) -> Inputs:
    return {k: v.float() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


class _Source:
    """Random tensors, the same for every dtype up to rounding."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(7)
        self._dtype = dtype

    def draw(self, *sizes: int) -> Tensor:
        device = self._generator.device
        return torch.randn(*sizes, generator=self._generator, device=device).to(self._dtype)


def _norms(sizes: list[tuple[int, int]]) -> Iterator[Case]:
    for rows, size in sizes:

        def inputs(dtype: torch.dtype, device: torch.device, rows: int = rows, size: int = size) -> Inputs:
            source = _Source(dtype, device)
            return {name: source.draw(rows, size) for name in ("x", "residual")} | {
                "weight": source.draw(size),
                "bias": source.draw(size),
            }

        def alone(ops: TorchOps, given: Inputs) -> list[Tensor]:
            return [ops.rms_norm(given["x"], given["weight"], 1e-5)]

        def added(ops: TorchOps, given: Inputs) -> list[Tensor]:
            out = ops.add_rms_norm(given["x"], given["residual"], given["weight"], 1e-5)
            return [out, given["residual"]]

        yield Case("rms_norm", f"[{rows}, {size}]", inputs, alone)
        yield Case("add_rms_norm", f"[{rows}, {size}]", inputs, added)


def _activations(sizes: list[tuple[int, int]]) -> Iterator[Case]:
    for rows, size in sizes:

        def inputs(dtype: torch.dtype, device: torch.device, rows: int = rows, size: int = size) -> Inputs:
            return {"gate_up": _Source(dtype, device).draw(rows, 2 * size)}

        def silu_mul(ops: TorchOps, given: Inputs) -> list[Tensor]:
            return [ops.silu_mul(given["gate_up"])]

        yield Case("silu_mul", f"[{rows}, 2 x {size}]", inputs, silu_mul)


def _ragged(heads: Heads, items: Sequence[tuple[int, int]], device: torch.device) -> tuple[RaggedBatch, int]:
    """On scattered blocks, one in four of the pool left over; and how many blocks the pool has."""
    needs = [-(-(start + n) // heads.block_size) for start, n in items]
    num_blocks = sum(needs) + sum(needs) // 4 + 1
    free = iter(random.Random(3).sample(range(num_blocks), sum(needs)))
    tables = [list(itertools.islice(free, need)) for need in needs]
    listed = [(start, n, table) for (start, n), table in zip(items, tables, strict=True)]
    return RaggedBatch.build(listed, heads.block_size, device), num_blocks


def _pool(source: _Source, heads: Heads, num_blocks: int) -> Tensor:
    """One layer of a pool of two, as the runner lays it out: a view with its own stride between blocks."""
    pool = source.draw(num_blocks, 2, 2, heads.stored, heads.block_size, heads.size)
    return pool[:, 1]


def _write_kv(
    heads: Heads, items: Sequence[tuple[int, int]], rope: bool, dtypes: tuple[torch.dtype, ...]
) -> Case:
    def inputs(dtype: torch.dtype, device: torch.device) -> Inputs:
        source = _Source(dtype, device)
        batch, num_blocks = _ragged(heads, items, device)
        angles = torch.randn(4096, heads.size // 2, generator=torch.Generator().manual_seed(5))
        return {
            "kv": _pool(source, heads, num_blocks),
            "qkv": source.draw(len(batch.positions), (heads.queries + 2 * heads.stored) * heads.size),
            "batch": batch,
            "rope": torch.cat((angles.cos(), angles.sin()), dim=-1).to(device) if rope else None,
        }

    def call(ops: TorchOps, given: Inputs) -> list[Tensor]:
        ops.write_kv(given["qkv"], given["kv"], given["batch"], given["rope"])
        return [given["qkv"], given["kv"]]

    about = f"{heads.name}, {'with' if rope else 'no'} rope, blocks of {heads.block_size}"
    return Case("write_kv", about, inputs, call, dtypes)


def _attention(
    heads: Heads, about: str, items: Sequence[tuple[int, int]], dtypes: tuple[torch.dtype, ...]
) -> Case:
    def inputs(dtype: torch.dtype, device: torch.device) -> Inputs:
        source = _Source(dtype, device)
        batch, num_blocks = _ragged(heads, items, device)
        kv = _pool(source, heads, num_blocks)
        _poison(kv, batch, heads.block_size)
        qkv = source.draw(len(batch.positions), (heads.queries + 2 * heads.stored) * heads.size)
        return {"qkv": qkv, "kv": kv, "batch": batch}

    def call(ops: TorchOps, given: Inputs) -> list[Tensor]:
        queries = given["qkv"][:, : heads.queries * heads.size].unflatten(1, (heads.queries, heads.size))
        return [ops.attention(queries, given["kv"], given["batch"])]

    return Case("attention", f"{heads.name}, {about}, blocks of {heads.block_size}", inputs, call, dtypes)


def _poison(kv: Tensor, batch: RaggedBatch, block_size: int) -> None:
    """NaN wherever no request's context stands: none of it may reach an answer."""
    used = torch.zeros(len(kv), block_size, dtype=torch.bool)
    tables = batch.block_tables.cpu()
    for row, context in enumerate(batch.contexts):
        whole, rest = divmod(context, block_size)
        used[tables[row, :whole].long()] = True
        if rest:
            used[tables[row, whole], :rest] = True
    unused = (~used).to(kv.device)[:, None, None, :, None]
    kv.copy_(kv.masked_fill(unused, float("nan")))
