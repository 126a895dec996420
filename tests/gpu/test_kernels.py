"""Compares every Triton kernel with plain torch in float32, at the sizes of real models.

On a GPU, the kernels are compiled for it. Without one, Triton's interpreter runs them, at small sizes.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

pytest.importorskip("triton", reason="Triton is not available on this platform")

from fgengine.model.layers import Linear
from fgengine.ops.batch import RaggedBatch
from fgengine.ops.reference import TorchOps
from fgengine.ops.triton.ops import TritonOps, fits

pytestmark = pytest.mark.gpu

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
CPU = torch.device("cpu")

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
TOLERANCE = {F32: 1e-4, F16: 4e-3, BF16: 3e-2}
"""Maximum difference from plain torch in float32 on the same inputs, relative to the sum of the value and
the root mean square of all values. One rounding to bfloat16 gives an error of up to 0.004, and TF32 instead
of float32 gives 0.0005. One ignored key of 1,000 changes the largest of some thousand outputs by 0.05."""
NEAR_DRAW = 3e-6
"""Tolerance of a draw or a top-p: the error of summing 100,000 probabilities in another order."""
LINEAR_INPUTS = 96

Inputs = dict[str, Any]
Call = Callable[[TorchOps, Inputs], Sequence[Tensor]]
"""Calls one operation; returns all tensors that it computes or changes."""


class Heads(NamedTuple):
    """The sizes that attention and its cache depend on."""

    name: str
    queries: int
    stored: int
    size: int
    block_size: int = 16
    rope: bool = True
    dtypes: tuple[torch.dtype, ...] = (F32, F16, BF16)


# A kernel is compiled for each dtype and head size, which takes seconds. So all dtypes are tested only for
# the first two models. The others use the dtype that shows errors best and the one in which they are served.
REAL_HEADS = (
    Heads("OPT-13B", 40, 40, 128, rope=False),
    Heads("Llama-3-8B", 32, 8, 128),
    Heads("SmolLM2", 9, 3, 64, block_size=32, dtypes=(F32, F16)),
    Heads("OPT-2.7B", 32, 32, 80, block_size=32, rope=False, dtypes=(F32, F16)),
)
SMALL_HEADS = (Heads("small", 6, 2, 16),)
HEADS = REAL_HEADS if ON_GPU else SMALL_HEADS

Items = list[tuple[int, int]]
"""(start, new tokens) of each request."""
DECODES: Items = [(n - 1, 1) for n in (1, 2, 15, 16, 17, 31, 32, 33, 255, 511, 512, 513, 1024, 2000)]
PREFILLS: Items = [(0, n) for n in (2, 15, 16, 17, 33, 130, 512, 1024)]
REAL_BATCHES: dict[str, Items] = {
    "decodes": DECODES,
    "a decode of 2000": [(1999, 1)],  # with so few requests, a context is split between programs
    "2 decodes": [(16, 1), (1500, 1)],
    "64 decodes of 300": [(299, 1)] * 64,
    "prefills": PREFILLS,
    "chunks": [(16, 16), (15, 2), (500, 64), (1000, 24), (1, 300)],
    "a chunk with decodes": [*DECODES, (496, 200), (0, 77)],
}
SMALL_BATCHES: dict[str, Items] = {
    "decodes": [(n - 1, 1) for n in (1, 15, 16, 17, 40)],
    "prefills": [(0, 2), (0, 17), (0, 33)],
    "a chunk with decodes": [(20, 1), (15, 1), (16, 5), (0, 9)],
}
BATCHES = REAL_BATCHES if ON_GPU else SMALL_BATCHES
NORMS = [(1, 5120), (16, 5120), (128, 4096), (2048, 4096), (7, 576)] if ON_GPU else [(3, 96), (1, 64)]
INNER = [(1, 14336), (16, 14336), (128, 20480), (2048, 14336), (7, 1537)] if ON_GPU else [(3, 96)]
VOCABULARIES = [50272, 128256, 1001] if ON_GPU else [300]
SAMPLED_ROWS = 256 if ON_GPU else 8

every_dtype = pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
norm_sizes = pytest.mark.parametrize(("rows", "size"), NORMS)
inner_sizes = pytest.mark.parametrize(("rows", "size"), INNER)


@pytest.fixture(autouse=True)
def kernels_can_run() -> None:
    """Fail with the reason if neither a GPU nor Triton's interpreter can run the kernels."""
    if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.fail(
            "this machine has an NVIDIA device, but torch finds no CUDA device: install torch for CUDA, or "
            "set TRITON_INTERPRET=1 to run the small tests on the CPU"
        )


def assert_right(call: Call, inputs: Inputs, dtype: torch.dtype) -> None:
    """Assert that the kernel's error is within ``TOLERANCE``. The call changes ``inputs``."""
    error = largest_error(TritonOps(), call, inputs, dtype)
    assert error <= TOLERANCE[dtype]


def largest_error(ops: TorchOps, call: Call, inputs: Inputs, dtype: torch.dtype) -> float:
    """Return the largest difference from plain torch in float32, relative as in ``TOLERANCE``.

    It is infinite if a value is not finite, or a shape or a dtype is wrong. The call changes ``inputs``.
    """
    wide = {
        name: value.to(F32, copy=True) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    with sdpa_kernel(SDPBackend.MATH):  # the other backends have larger rounding errors
        reference = call(TorchOps(), wide)
    worst = 0.0
    for got, expected in zip(call(ops, inputs), reference, strict=True):
        if got.shape != expected.shape or (expected.is_floating_point() and got.dtype != dtype):
            return float("inf")
        got, expected = got.float(), expected.float()
        unwritten = got.isnan() & expected.isnan()  # NaN on purpose, in memory that must not be written
        difference = (got - expected).abs().masked_fill(unwritten, 0.0)
        if not difference.isfinite().all():
            return float("inf")
        size = expected[~expected.isnan()].square().mean().sqrt()
        relative = difference / (expected.abs() + size + 1e-6)
        worst = max(worst, float(relative.masked_fill(unwritten, 0.0).max()))
    return worst


class RandomTensors:
    """Random tensors that are the same for every dtype, except for rounding."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._generator = torch.Generator(device).manual_seed(7)
        self._dtype = dtype

    def draw(self, *sizes: int) -> Tensor:
        """Return normal random numbers of the given shape."""
        device = self._generator.device
        return torch.randn(*sizes, generator=self._generator, device=device).to(self._dtype)


def test_every_operation_with_a_kernel_has_a_test() -> None:
    own = {name for name, value in vars(TritonOps).items() if callable(value) and not name.startswith("_")}
    assert own
    assert [name for name in sorted(own) if f"test_{name}" not in globals()] == []


def norm_inputs(rows: int, size: int, dtype: torch.dtype) -> Inputs:
    random_tensors = RandomTensors(dtype, DEVICE)
    return {
        "x": random_tensors.draw(rows, size),
        "residual": random_tensors.draw(rows, size),
        "weight": random_tensors.draw(size),
        "bias": random_tensors.draw(size),
    }


@every_dtype
@norm_sizes
def test_rms_norm(rows: int, size: int, dtype: torch.dtype) -> None:
    def call(ops: TorchOps, given: Inputs) -> list[Tensor]:
        return [ops.rms_norm(given["x"], given["weight"], 1e-5)]

    assert_right(call, norm_inputs(rows, size, dtype), dtype)


@every_dtype
@norm_sizes
def test_add_rms_norm(rows: int, size: int, dtype: torch.dtype) -> None:
    def call(ops: TorchOps, given: Inputs) -> list[Tensor]:
        out = ops.add_rms_norm(given["x"], given["residual"], given["weight"], 1e-5)
        return [out, given["residual"]]

    assert_right(call, norm_inputs(rows, size, dtype), dtype)


@every_dtype
@norm_sizes
def test_layer_norm(rows: int, size: int, dtype: torch.dtype) -> None:
    def call(ops: TorchOps, given: Inputs) -> list[Tensor]:
        return [ops.layer_norm(given["x"], given["weight"], given["bias"], 1e-5)]

    assert_right(call, norm_inputs(rows, size, dtype), dtype)


@every_dtype
@norm_sizes
def test_add_layer_norm(rows: int, size: int, dtype: torch.dtype) -> None:
    def call(ops: TorchOps, given: Inputs) -> list[Tensor]:
        out = ops.add_layer_norm(given["x"], given["residual"], given["weight"], given["bias"], 1e-5)
        return [out, given["residual"]]

    assert_right(call, norm_inputs(rows, size, dtype), dtype)


@every_dtype
@inner_sizes
def test_silu_mul(rows: int, size: int, dtype: torch.dtype) -> None:
    def call(ops: TorchOps, given: Inputs) -> list[Tensor]:
        return [ops.silu_mul(given["gate_up"])]

    assert_right(call, {"gate_up": RandomTensors(dtype, DEVICE).draw(rows, 2 * size)}, dtype)


@every_dtype
@inner_sizes
def test_linear_relu(rows: int, size: int, dtype: torch.dtype) -> None:
    def call(ops: TorchOps, given: Inputs) -> list[Tensor]:
        weight = given["weight"]
        linear = Linear(LINEAR_INPUTS, size, True, weight.device, weight.dtype)
        linear.weight.data, linear.bias.data = weight, given["bias"]
        return [ops.linear_relu(linear, given["x"])]

    random_tensors = RandomTensors(dtype, DEVICE)
    inputs = {
        "x": random_tensors.draw(rows, LINEAR_INPUTS),
        "weight": random_tensors.draw(size, LINEAR_INPUTS),
        "bias": random_tensors.draw(size),
    }
    assert_right(call, inputs, dtype)


@every_dtype
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.slow
def test_sample(vocabulary: int, dtype: torch.dtype) -> None:
    """All kinds of sampling, and ties: half precision has few values.

    The tokens equal those of the torch sampler for the same draws or, because sums are rounded differently,
    for slightly different draws and values of top-p.
    """
    kinds = [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.7, 40, 1.0), (1.0, 0, 0.9), (1.3, 100, 0.95), (0.1, 1, 0.5)]
    draws = random.Random(11)
    table = [(*kinds[row % len(kinds)], draws.random()) for row in range(SAMPLED_ROWS)]
    rows = torch.tensor(table, dtype=torch.float64, device=DEVICE)
    logits = 3.0 * RandomTensors(dtype, DEVICE).draw(SAMPLED_ROWS, vocabulary)
    tokens = TritonOps().sample(logits, rows)
    same = TorchOps().sample(logits, rows) == tokens
    same_or_near = same.clone()
    for draw, top_p in itertools.product((0.0, -NEAR_DRAW, NEAR_DRAW), repeat=2):
        near = rows.clone()
        near[:, 3] = (near[:, 3] + draw).clamp(0.0, 1.0 - NEAR_DRAW)
        near[:, 2] = torch.where(near[:, 2] < 1.0, near[:, 2] + top_p, 1.0)
        same_or_near |= TorchOps().sample(logits, near) == tokens
    assert same_or_near.all()
    assert int(same.sum()) >= 0.95 * SAMPLED_ROWS


def scattered(heads: Heads, items: Items, device: torch.device) -> tuple[RaggedBatch, int]:
    """Return a batch on scattered blocks, and the number of blocks of the pool (a fifth is unused)."""
    needs = [-(-(start + n) // heads.block_size) for start, n in items]
    num_blocks = sum(needs) + sum(needs) // 4 + 1
    free = iter(random.Random(3).sample(range(num_blocks), sum(needs)))
    tables = [list(itertools.islice(free, need)) for need in needs]
    listed = [(start, n, table) for (start, n), table in zip(items, tables, strict=True)]
    return RaggedBatch.build(listed, heads.block_size, device), num_blocks


def random_pool(random_tensors: RandomTensors, heads: Heads, num_blocks: int) -> Tensor:
    """Return one layer of a pool with two layers: a view with strides as in a runner's pool."""
    pool = random_tensors.draw(num_blocks, 2, 2, heads.stored, heads.block_size, heads.size)
    return pool[:, 1]


@pytest.mark.parametrize(
    ("heads", "dtype", "rope"),
    [
        pytest.param(heads, dtype, rope, id=f"{heads.name}-{dtype}-{'rope' if rope else 'no rope'}")
        for heads in HEADS
        for dtype in heads.dtypes
        for rope in ((False, True) if heads.rope else (False,))
    ],
)
@pytest.mark.slow
def test_write_kv(heads: Heads, dtype: torch.dtype, rope: bool) -> None:
    def call(ops: TorchOps, given: Inputs) -> list[Tensor]:
        ops.write_kv(given["qkv"], given["kv"], given["batch"], given["rope"])
        return [given["qkv"], given["kv"]]

    random_tensors = RandomTensors(dtype, DEVICE)
    batch, num_blocks = scattered(heads, BATCHES["decodes"] + BATCHES["prefills"], DEVICE)
    angles = torch.randn(4096, heads.size // 2, generator=torch.Generator().manual_seed(5))
    inputs = {
        "kv": random_pool(random_tensors, heads, num_blocks),
        "qkv": random_tensors.draw(len(batch.positions), (heads.queries + 2 * heads.stored) * heads.size),
        "batch": batch,
        "rope": torch.cat((angles.cos(), angles.sin()), dim=-1).to(DEVICE) if rope else None,
    }
    assert_right(call, inputs, dtype)


def attention_inputs(heads: Heads, items: Items, dtype: torch.dtype, device: torch.device) -> Inputs:
    random_tensors = RandomTensors(dtype, device)
    batch, num_blocks = scattered(heads, items, device)
    kv = random_pool(random_tensors, heads, num_blocks)
    fill_unused_with_nan(kv, batch, heads.block_size)
    qkv = random_tensors.draw(len(batch.positions), (heads.queries + 2 * heads.stored) * heads.size)
    queries = qkv[:, : heads.queries * heads.size].unflatten(1, (heads.queries, heads.size))
    return {"queries": queries, "kv": kv, "batch": batch}


def fill_unused_with_nan(kv: Tensor, batch: RaggedBatch, block_size: int) -> None:
    """Fill the unused parts of the pool with NaN, because they must not affect the result."""
    used = torch.zeros(len(kv), block_size, dtype=torch.bool)
    tables = batch.block_tables.cpu()
    for row, context in enumerate(batch.contexts):
        full, rest = divmod(context, block_size)
        used[tables[row, :full].long()] = True
        if rest:
            used[tables[row, full], :rest] = True
    unused = (~used).to(kv.device)[:, None, None, :, None]
    kv.copy_(kv.masked_fill(unused, float("nan")))


def call_attention(ops: TorchOps, given: Inputs) -> list[Tensor]:
    return [ops.attention(given["queries"], given["kv"], given["batch"])]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("heads", "dtype"),
    [
        pytest.param(heads, dtype, id=f"{heads.name}-{dtype}")
        for heads in HEADS
        for dtype in heads.dtypes
        if ON_GPU or dtype is not BF16  # Triton's interpreter multiplies bfloat16 matrices wrongly
    ],
)
@pytest.mark.slow
def test_attention(heads: Heads, dtype: torch.dtype, batch: str) -> None:
    inputs = attention_inputs(heads, BATCHES[batch], dtype, DEVICE)
    assert fits(inputs["queries"], inputs["kv"]), (
        "TritonOps would call torch, so the test would compare torch with itself"
    )
    assert_right(call_attention, inputs, dtype)


class LastKeyIgnored(TorchOps):
    """Attention that ignores the last key of every context."""

    def attention(self, q: Tensor, kv: Tensor, batch: RaggedBatch) -> Tensor:
        shorter = replace(batch, context_lens=(batch.context_lens - 1).clamp(min=1))
        return super().attention(q, kv, shorter)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.slow
def test_an_ignored_key_causes_a_larger_error_than_rounding(dtype: torch.dtype) -> None:
    def error(ops: TorchOps) -> float:
        return largest_error(ops, call_attention, attention_inputs(smollm2, DECODES, dtype, CPU), dtype)

    smollm2 = REAL_HEADS[2]
    assert error(TorchOps()) < TOLERANCE[dtype] / 2
    assert error(LastKeyIgnored()) > TOLERANCE[dtype]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda x: x.float(), id="another dtype"),
        pytest.param(lambda x: x[:1], id="another shape"),
        pytest.param(lambda x: x.masked_fill(x == x.max(), float("nan")), id="NaN"),
    ],
)
def test_a_wrong_dtype_shape_or_nan_is_an_infinite_error(wrong: Callable[[Tensor], Tensor]) -> None:
    class Ops(TorchOps):
        def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
            return wrong(super().rms_norm(x, weight, eps))

    def call(ops: TorchOps, given: Inputs) -> list[Tensor]:
        return [ops.rms_norm(given["x"], given["weight"], 1e-5)]

    assert largest_error(TorchOps(), call, norm_inputs(3, 96, F16), F16) < TOLERANCE[F16]
    assert largest_error(Ops(), call, norm_inputs(3, 96, F16), F16) == float("inf")
