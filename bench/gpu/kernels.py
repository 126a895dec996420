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

from fgengine.model.layers import Linear
from fgengine.ops.batch import RaggedBatch
from fgengine.ops.reference import TorchOps
from gpu.checks import Check

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference to plain torch in float32 on the same inputs, relative to the value and the root mean
square of all together. Rounding to bfloat16 once is off by up to 0.004 of that; TF32 for float32 by 0.0005,
and one key left out of 1,000 moves the largest of some thousand outputs by 0.05."""
NEXT_TO = 3e-6
"""In a draw or in top-p: what adding up 100,000 masses in another order comes to."""
INPUTS = 96
"""Of the linear layer before a ReLU."""
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
    judge: Callable[[Case, TorchOps, torch.dtype, torch.device], tuple[bool, str]] | None = None
    """Where how far numbers are apart says nothing."""


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
    "a decode of 2000": [(1999, 1)],  # so few that a context is split between programs
    "2 decodes": [(16, 1), (1500, 1)],
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
        "sampling": list(_sampling([300] if tiny else [50272, 128256, 1001], 8 if tiny else 256)),
    }
    for heads in (TINY_HEADS,) if tiny else (OPT_13B, LLAMA_3_8B, SMOLLM2, OPT_2_7B):
        mixes = TINY_MIXES if tiny else MIXES
        # A kernel is compiled for each dtype and head size, seconds each: all dtypes for the two models, and
        # for the others the one in which a mistake shows most and the one that they are served in.
        common = heads in (OPT_13B, LLAMA_3_8B)
        dtypes = Case.dtypes if common else (torch.float32, torch.float16)
        ropes = (False, True) if heads.rope else (False,)
        groups[heads.name] = [
            *(_write_kv(heads, mixes["decodes"] + mixes["prefills"], rope, dtypes) for rope in ropes),
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
    if case.judge is not None:
        return case.judge(case, ops, dtype, device)
    error = judge(case, ops, dtype, device)
    return error <= TOLERANCE[dtype], f"off by {error:.2g} of {TOLERANCE[dtype]:g}"


def judge(case: Case, ops: TorchOps, dtype: torch.dtype, device: torch.device) -> float:
    """The largest difference to the truth, as ``TOLERANCE`` has it; infinite where a value is no number, or a
    shape or a dtype is another."""
    given = case.call(ops, case.inputs(dtype, device))
    with sdpa_kernel(SDPBackend.MATH):  # the others take short cuts
        truth = case.call(TorchOps(), _widened(case.inputs(dtype, device)))
    worst = 0.0
    for got, wanted in zip(given, truth, strict=True):
        if got.shape != wanted.shape or (wanted.is_floating_point() and got.dtype != dtype):
            return float("inf")
        wide, wanted = got.float(), wanted.float()
        both = wide.isnan() & wanted.isnan()  # memory that was poisoned, and that nothing was to write
        error = (wide - wanted).abs().masked_fill(both, 0.0)
        if not error.isfinite().all():
            return float("inf")
        size = wanted[~wanted.isnan()].square().mean().sqrt()
        worst = max(worst, float((error / (wanted.abs() + size + 1e-6)).masked_fill(both, 0.0).max()))
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

        def rms(ops: TorchOps, given: Inputs) -> list[Tensor]:
            return [ops.rms_norm(given["x"], given["weight"], 1e-5)]

        def add_rms(ops: TorchOps, given: Inputs) -> list[Tensor]:
            out = ops.add_rms_norm(given["x"], given["residual"], given["weight"], 1e-5)
            return [out, given["residual"]]

        def layer(ops: TorchOps, given: Inputs) -> list[Tensor]:
            return [ops.layer_norm(given["x"], given["weight"], given["bias"], 1e-5)]

        def add_layer(ops: TorchOps, given: Inputs) -> list[Tensor]:
            out = ops.add_layer_norm(given["x"], given["residual"], given["weight"], given["bias"], 1e-5)
            return [out, given["residual"]]

        for name, call in (
            ("rms_norm", rms),
            ("add_rms_norm", add_rms),
            ("layer_norm", layer),
            ("add_layer_norm", add_layer),
        ):
            yield Case(name, f"[{rows}, {size}]", inputs, call)


def _activations(sizes: list[tuple[int, int]]) -> Iterator[Case]:
    for rows, size in sizes:

        def inputs(dtype: torch.dtype, device: torch.device, rows: int = rows, size: int = size) -> Inputs:
            source = _Source(dtype, device)
            return {
                "gate_up": source.draw(rows, 2 * size),
                "x": source.draw(rows, INPUTS),
                "weight": source.draw(size, INPUTS),
                "bias": source.draw(size),
            }

        def silu_mul(ops: TorchOps, given: Inputs) -> list[Tensor]:
            return [ops.silu_mul(given["gate_up"])]

        def linear_relu(ops: TorchOps, given: Inputs) -> list[Tensor]:
            weight = given["weight"]
            linear = Linear(INPUTS, len(weight), True, weight.device, weight.dtype)
            linear.weight.data, linear.bias.data = weight, given["bias"]
            return [ops.linear_relu(linear, given["x"])]

        yield Case("silu_mul", f"[{rows}, 2 x {size}]", inputs, silu_mul)
        yield Case("linear_relu", f"[{rows}, {INPUTS}] to {size}", inputs, linear_relu)


def _sampling(vocabularies: list[int], rows: int) -> Iterator[Case]:
    """Every way of asking, and ties: half precision has few values."""
    asked = [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 40, 1.0), (1.0, 0, 0.9), (1.3, 100, 0.95), (0.1, 1, 0.5)]
    for vocabulary in vocabularies:

        def inputs(dtype: torch.dtype, device: torch.device, vocabulary: int = vocabulary) -> Inputs:
            draws = random.Random(11)
            table = [(*asked[row % len(asked)], draws.random()) for row in range(rows)]
            return {
                "logits": 3.0 * _Source(dtype, device).draw(rows, vocabulary),
                "rows": torch.tensor(table, dtype=torch.float64, device=device),
            }

        def call(ops: TorchOps, given: Inputs) -> list[Tensor]:
            return [ops.sample(given["logits"], given["rows"])]

        yield Case("sample", f"{rows} rows of {vocabulary}", inputs, call, judge=_same_tokens)


def _same_tokens(case: Case, ops: TorchOps, dtype: torch.dtype, device: torch.device) -> tuple[bool, str]:
    """The tokens of the same draws, or, where sums are rounded otherwise, of draws and cuts next to them."""
    given = case.inputs(dtype, device)
    (tokens,) = case.call(ops, given)
    at_hand = torch.zeros_like(tokens, dtype=torch.bool)
    for draw, top_p in itertools.product((0.0, -NEXT_TO, NEXT_TO), repeat=2):
        rows = given["rows"].clone()
        rows[:, 3] = (rows[:, 3] + draw).clamp(0.0, 1.0 - NEXT_TO)
        rows[:, 2] = torch.where(rows[:, 2] < 1.0, rows[:, 2] + top_p, 1.0)
        truth = TorchOps().sample(given["logits"], rows)
        equal = truth == tokens
        if draw == top_p == 0.0:
            same = int(equal.sum())
        at_hand |= equal
    found = f"{same} of {len(tokens)} tokens the same, {int(at_hand.sum()) - same} next to them"
    return bool(at_hand.all()) and same >= 0.95 * len(tokens), found


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
