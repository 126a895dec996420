"""The other Triton kernels, compared with plain torch: on a GPU if there is one, else in the interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fgengine.model.layers import Linear
from fgengine.ops.batch import RaggedBatch
from fgengine.ops.reference import TorchOps
from fgengine.ops.triton.ops import TritonOps

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
PLAIN, FAST = TorchOps(), TritonOps()
POISON = float("nan")


@pytest.fixture(params=TOLERANCE, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    torch.manual_seed(0)
    made: torch.dtype = request.param
    return made


def assert_near(got: Tensor, want: Tensor) -> None:
    near = TOLERANCE[want.dtype]
    torch.testing.assert_close(got, want, atol=near, rtol=near, equal_nan=True)


def assert_same(got: Tensor, want: Tensor) -> None:
    """Compare bit for bit, except for bfloat16 in the interpreter, which truncates instead of rounding."""
    if want.dtype is torch.bfloat16 and DEVICE.type == "cpu":
        assert_near(got, want)
    else:
        assert torch.equal(got, want)


def random(*sizes: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(*sizes) * scale).to(dtype).to(DEVICE)


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("size", [20, 576, 768, 4096, 5120])
@pytest.mark.slow
def test_norms(dtype: torch.dtype, size: int, rows: int) -> None:
    x = random(rows, size + 7, dtype=dtype)[:, :size]  # rows may be strided
    residual = random(rows, size, dtype=dtype, scale=3.0) + 1
    weight, bias = random(size, dtype=dtype), random(size, dtype=dtype)
    assert_near(FAST.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5))
    assert_near(FAST.layer_norm(x, weight, bias, 1e-5), PLAIN.layer_norm(x, weight, bias, 1e-5))
    ours, theirs = residual.clone(), residual.clone()
    got = FAST.add_rms_norm(x, ours, weight, 1e-5)
    assert_near(got, PLAIN.add_rms_norm(x, theirs, weight, 1e-5))
    assert_same(ours, theirs)
    got = FAST.add_layer_norm(x, ours, weight, bias, 1e-5)
    assert_near(got, PLAIN.add_layer_norm(x, theirs, weight, bias, 1e-5))
    assert_same(ours, theirs)


def test_norms_of_large_values_in_float16() -> None:
    """Squares and sums over a row exceed float16, so statistics must be in float32."""
    torch.manual_seed(0)
    x = random(2, 5120, dtype=torch.float16, scale=2000.0) + 5000
    weight, bias = random(5120, dtype=torch.float16), random(5120, dtype=torch.float16)
    assert_near(FAST.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5))
    assert_near(FAST.layer_norm(x, weight, bias, 1e-5), PLAIN.layer_norm(x, weight, bias, 1e-5))


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("size", [33, 1024, 1536, 2051])
@pytest.mark.slow
def test_activations(dtype: torch.dtype, size: int, rows: int) -> None:
    gate_up = random(rows, 2 * size, dtype=dtype, scale=30.0)
    assert_near(FAST.silu_mul(gate_up), PLAIN.silu_mul(gate_up))
    linear = Linear(48, size, True, DEVICE, dtype)
    linear.weight.data.copy_(random(size, 48, dtype=dtype))
    assert linear.bias is not None
    linear.bias.data.copy_(random(size, dtype=dtype))
    x = random(rows, 48, dtype=dtype, scale=0.3)
    if rows:
        x[-1] = POISON  # NaN must appear in the result, not become 0
    assert_near(FAST.linear_relu(linear, x), PLAIN.linear_relu(linear, x))


def scattered(items: list[tuple[int, int]], block_size: int) -> tuple[RaggedBatch, int]:
    """Build a batch from (start, new tokens) of each request; also return the number of blocks."""
    counts = [-(-(start + new) // block_size) for start, new in items]
    blocks = iter(torch.randperm(sum(counts) + 3).tolist())
    laid = [(*item, [next(blocks) for _ in range(count)]) for item, count in zip(items, counts, strict=True)]
    return RaggedBatch.build(laid, block_size, DEVICE), sum(counts) + 3


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(9, 3, 64), (4, 4, 80), (8, 2, 128), (2, 2, 16), (6, 2, 20)]
)
@pytest.mark.slow
def test_write_kv(
    dtype: torch.dtype, heads: int, kv_heads: int, dim: int, block_size: int, rotated: bool
) -> None:
    batch, num_blocks = scattered([(0, 1), (31, 2), (16, 1), (15, 1), (5, 7)], block_size)
    qkv = random(12, (heads + 2 * kv_heads) * dim, dtype=dtype)
    rope = torch.randn(40, dim, device=DEVICE) if rotated else None
    pool = torch.full((num_blocks, 3, 2, kv_heads, block_size, dim), POISON, dtype=dtype, device=DEVICE)
    results = []
    for ops in (PLAIN, FAST):
        mine, stored = qkv.clone(), pool.clone()
        ops.write_kv(mine, stored[:, 1], batch, rope)
        results.append((mine, stored))
    for want, got in zip(*results, strict=True):
        assert_near(got, want)
    want, got = (stored[:, 1, 1] for _, stored in results)
    assert torch.equal(got.nan_to_num(), want.nan_to_num()), "values are copied as they are"
    assert int(results[1][1].isfinite().sum()) == 12 * 2 * kv_heads * dim, "nothing else is touched"


def test_write_kv_of_one_token_and_of_a_padded_batch(dtype: torch.dtype) -> None:
    """A captured step has padding rows, which all write to one slot that is never read."""
    batch, num_blocks = scattered([(17, 1), *[(0, 1)] * 3], 16)
    batch.slots[1:] = num_blocks * 16
    qkv, rope = random(4, 4 * 64, dtype=dtype), torch.randn(20, 64, device=DEVICE)
    pool = torch.full((num_blocks + 1, 1, 2, 1, 16, 64), POISON, dtype=dtype, device=DEVICE)
    alone, _ = scattered([(17, 1)], 16)
    alone.slots[:] = batch.slots[:1]
    want = pool.clone()
    PLAIN.write_kv(qkv[:1].clone(), want[:, 0], alone, rope)
    FAST.write_kv(qkv, pool[:, 0], batch, rope)
    assert_near(pool[:-1], want[:-1])
