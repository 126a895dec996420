"""The attention kernels, compared with plain torch: on a GPU if there is one, else in the interpreter."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fgengine.ops.batch import RaggedBatch
from fgengine.ops.reference import TorchOps
from fgengine.ops.triton import decode_attention
from fgengine.ops.triton.decode_attention import MAX_SPLITS, MIN_SPLIT, num_splits
from fgengine.ops.triton.gpu import GPU
from fgengine.ops.triton.ops import TritonOps, fits

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3}
Items = Sequence[tuple[int, int]]
"""(start, new tokens) of each request."""


@pytest.fixture(autouse=True)
def never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make TritonOps use its kernels always, so that these tests never compare torch with torch."""
    monkeypatch.setattr("fgengine.ops.triton.ops.fits", lambda q, kv: True)


def laid_out(items: Items, block_size: int, num_blocks: int, seed: int = 0) -> RaggedBatch:
    """Put every request on random blocks, but not on block 0, which unused entries of a table contain."""
    free = random.Random(seed).sample(range(1, num_blocks), num_blocks - 1)
    tables = [[free.pop() for _ in range(-(-(start + new) // block_size))] for start, new in items]
    laid = [(start, new, table) for (start, new), table in zip(items, tables, strict=True)]
    return RaggedBatch.build(laid, block_size, DEVICE)


def filled_pool(
    batch: RaggedBatch, kv_heads: int, block_size: int, dim: int, num_blocks: int, dtype: torch.dtype
) -> torch.Tensor:
    """Return the second of three layers: random keys and values within every context, NaN elsewhere."""
    pool = torch.full((num_blocks, 3, 2, kv_heads, block_size, dim), torch.nan, dtype=dtype, device=DEVICE)
    kv = pool[:, 1]
    for row, context in enumerate(batch.context_lens.tolist()):
        at = torch.arange(context, device=DEVICE)
        block = batch.block_tables[row][at // block_size].long()
        kv[block, :, :, at % block_size] = torch.randn(context, 2, kv_heads, dim).to(DEVICE, dtype)
    return kv


def strided_queries(tokens: int, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """Return queries [tokens, heads, dim] as a view of a fused qkv tensor."""
    return torch.randn(tokens, heads + 2 * kv_heads, dim).to(DEVICE, dtype)[:, :heads]


def check(
    items: Items,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> None:
    """Compare the kernels' attention with TorchOps' in float32 for one batch."""
    torch.manual_seed(seed)
    num_blocks = 1 + sum(-(-(start + new) // block_size) for start, new in items)
    batch = laid_out(items, block_size, num_blocks, seed)
    kv = filled_pool(batch, kv_heads, block_size, dim, num_blocks, dtype)
    q = strided_queries(sum(new for _, new in items), heads, kv_heads, dim, dtype)
    got = TritonOps().attention(q, kv, batch)
    want = TorchOps().attention(q.float(), kv.float(), batch)
    assert got.is_contiguous()
    assert got.dtype is dtype
    torch.testing.assert_close(got.float(), want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


MIX: Items = [(0, 1), (16, 1), (129, 1), (0, 37), (130, 1), (15, 2), (40, 45)]
"""Decodes first, then prefills and chunks of prompts, with a decode among them."""


@pytest.mark.parametrize(("block_size", "dtype"), [(16, torch.float32), (32, torch.float16)])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"),
    [(3, 1, 64), (6, 2, 64), (4, 1, 128), (8, 1, 80), (2, 2, 128), (2, 2, 80)],
)
@pytest.mark.slow
def test_attention_at_usual_head_sizes(
    heads: int, kv_heads: int, dim: int, block_size: int, dtype: torch.dtype
) -> None:
    check(MIX, heads, kv_heads, dim, block_size, dtype)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "block_size"),
    [(2, 2, 16, 8), (6, 2, 20, 16), (4, 2, 32, 128), (20, 1, 64, 64), (2, 1, 256, 16), (3, 3, 8, 24)],
)
@pytest.mark.slow
def test_attention_at_small_and_unusual_head_sizes(
    heads: int, kv_heads: int, dim: int, block_size: int
) -> None:
    check(MIX, heads, kv_heads, dim, block_size)


EDGES = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.slow
def test_decodes_at_the_edges_of_blocks_tiles_and_splits(dtype: torch.dtype) -> None:
    check([(context - 1, 1) for context in EDGES], 2, 1, 64, 16, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.slow
def test_prefills_at_the_edges_of_blocks_and_tiles(dtype: torch.dtype) -> None:
    check([(0, context) for context in EDGES], 1, 1, 32, 16, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.slow
def test_chunks_of_prompts_at_the_edges_of_blocks_and_tiles(group: int, dtype: torch.dtype) -> None:
    chunks = [
        (1, 15),
        (14, 20),
        (15, 1),
        (16, 16),
        (31, 2),
        (64, 64),
        (126, 5),
        (127, 3),
        (128, 129),
        (129, 42),
    ]
    check([(0, 2), *chunks], group, 1, 32, 16, dtype)


@pytest.mark.parametrize("sms", [1, 9, 1000])
@pytest.mark.slow
def test_contexts_with_one_some_and_many_splits(monkeypatch: pytest.MonkeyPatch, sms: int) -> None:
    monkeypatch.setattr(decode_attention, "gpu_of", lambda device: GPU(sms, 0))
    assert num_splits(6, 1400, sms) == {1: 1, 9: 6, 1000: 11}[sms]
    check([(1399, 1), (700, 1), (0, 1)], 4, 2, 64, 16)
    check([(1399, 1), (128, 1)], 4, 2, 64, 32, torch.float16)


def test_the_number_of_splits() -> None:
    assert num_splits(8, 128, 132) == 1, "a short context is not split"
    assert num_splits(8, 129, 132) == 2
    assert num_splits(1, 10**6, 132) == MAX_SPLITS
    assert num_splits(10**6, 10**6, 132) == 1, "enough programs without splitting"
    for requests in (1, 2, 16, 64):
        splits = num_splits(requests * 8, 8192, 132)
        assert splits == 8192 // MIN_SPLIT or requests * 8 * splits >= 4 * 132


@pytest.mark.slow
def test_a_captured_batch_follows_the_lengths_on_the_device() -> None:
    """A graph is captured with upper bounds of the contexts. Padding has a context of 1 in a dummy block."""
    torch.manual_seed(0)
    real = [(300, 1), (20, 1), (1023, 1)]
    batch = laid_out([*real, (0, 1)], 16, 90)
    captured = dataclasses.replace(
        batch, contexts=(2048,) * 4, block_tables=torch.nn.functional.pad(batch.block_tables, (0, 64))
    )
    assert captured.longest_decode_context == 2048
    kv = filled_pool(batch, 2, 16, 64, 90, torch.float32)
    q = strided_queries(4, 8, 2, 64, torch.float32)
    torch.testing.assert_close(
        TritonOps().attention(q, kv, captured), TorchOps().attention(q, kv, batch), atol=2e-5, rtol=2e-5
    )


def test_attention_with_very_different_scores() -> None:
    """No weight overflows if scores are 60 times larger than usual."""
    torch.manual_seed(0)
    batch = laid_out([(200, 1), (0, 50)], 16, 20)
    kv = filled_pool(batch, 1, 16, 64, 20, torch.float16)
    q = strided_queries(51, 2, 1, 64, torch.float16) * 60
    got, want = TritonOps().attention(q, kv, batch), TorchOps().attention(q.float(), kv.float(), batch)
    torch.testing.assert_close(got.float(), want, atol=4e-3, rtol=4e-3)


def test_a_pool_of_more_than_two_to_the_31_elements() -> None:
    """The pool's memory is only reserved: only the last block is used."""
    torch.manual_seed(0)
    block_size, dim, layers = 16, 64, 16
    per_block = layers * 2 * block_size * dim
    blocks = 2**31 // per_block + 2
    if DEVICE.type == "cuda" and torch.cuda.mem_get_info()[0] < 6 * 2**30:
        pytest.skip("takes 4 GiB of GPU memory")
    pool = torch.empty(blocks, layers, 2, 1, block_size, dim, dtype=torch.float16, device=DEVICE)
    kv = pool[:, layers - 1]
    kv[blocks - 1] = torch.randn(2, 1, block_size, dim).to(DEVICE, torch.float16)
    batch = RaggedBatch.build([(9, 1, [blocks - 1]), (0, 10, [blocks - 1])], block_size, DEVICE)
    q = strided_queries(11, 2, 1, dim, torch.float16)
    got, want = TritonOps().attention(q, kv, batch), TorchOps().attention(q, kv, batch)
    torch.testing.assert_close(got, want, atol=3e-3, rtol=3e-3)


def test_unsupported_sizes_and_strides_are_left_to_torch() -> None:
    kv = torch.empty(4, 3, 2, 2, 16, 64)[:, 1]
    fused = torch.empty(5, 8, 64)
    assert fits(fused[:, :4], kv)
    assert not fits(fused.transpose(1, 2), kv), "rows are not dense"
    assert not fits(torch.empty(5, 4, 300), torch.empty(4, 2, 2, 16, 300)), "the head is too long"
    assert not fits(torch.empty(5, 130, 64), kv), "more query heads per KV head than a tile holds"
    assert not fits(fused[:, :4], kv.transpose(2, 3)), "the pool has another layout"


lengths = st.one_of(st.just(1), st.sampled_from([2, 15, 16, 17, 33, 64, 127, 129]), st.integers(1, 90))
items_in_any_order = st.lists(st.tuples(st.integers(0, 150), lengths), min_size=1, max_size=4)


@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    items=items_in_any_order,
    group=st.sampled_from([1, 2, 3, 4, 8]),
    kv_heads=st.integers(1, 2),
    dim=st.sampled_from([16, 20, 64, 80]),
    block_size=st.sampled_from([8, 16, 32]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 2**16),
)
@pytest.mark.slow
def test_attention_of_any_batch(
    items: list[tuple[int, int]],
    group: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    check(items, group * kv_heads, kv_heads, dim, block_size, dtype, seed)
