"""Attention of one new token a request: flash decoding over the paged context."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgengine.ops.batch import RaggedBatch
from fgengine.ops.triton.gpu import gpu_of
from fgengine.ops.triton.tiles import LOG2E, attend

MIN_SPLIT = 128
"""Tokens: no context is cut finer. 128 tokens of one head are 32 to 64 KiB and two loop iterations, both
asked for before the first is awaited; finer splits would add programs, not bytes in flight."""
MAX_SPLITS = 64
"""The combining kernel takes all of a head's splits in one tile, always this large: a tile that grew with
them would be compiled again, in the middle of serving, whenever it did."""
PROGRAMS_PER_SM = 4
"""Contexts are split until there are so many programs for each SM: the three that it runs at a time (see
``_tiles``) and a few that start when short contexts end. With fewer, one long context decides the time;
with more, there are only more partial results to combine (some KiB a split, which stay in the L2 cache)."""


@triton.jit
def _split(context, splits, BLOCK_N: tl.constexpr, MIN_SPLIT: tl.constexpr):
    """The tokens each split of a context takes, a whole number of tiles: from the real length, which a
    captured launch learns from the device only, so that all its programs have work."""
    share = tl.cdiv(tl.cdiv(context, splits), BLOCK_N) * BLOCK_N
    return tl.maximum(share, MIN_SPLIT)


@triton.jit(
    do_not_specialize=["table_stride", "splits"],
    do_not_specialize_on_alignment=["block_tables", "context_lens"],
)
def _decode(
    out,
    partial,
    log_sums,
    q,
    kv,
    block_tables,
    context_lens,
    q_stride,
    block_stride,
    table_stride,
    splits,
    scale,
    SPLIT: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A program: the queries of one KV head of one request, over one split of its context.

    KV heads change fastest: in a block they lie one behind the other, so programs that run at the same
    time read neighbouring memory.
    """
    kv_head = tl.program_id(0)
    split = tl.program_id(1)
    request = tl.program_id(2)
    context = tl.load(context_lens + request)
    share = _split(context, splits, BLOCK_N, MIN_SPLIT)
    first = split * share
    if first >= context:
        return
    end = tl.minimum(context, first + share)

    member = tl.arange(0, M)
    dim = tl.arange(0, D)
    head = kv_head * GROUP + member
    used = (member < GROUP)[:, None] & (dim < HEAD_DIM)[None, :]
    place = head[:, None] * HEAD_DIM + dim[None, :]
    queries = tl.load(q + request.to(tl.int64) * q_stride + place, mask=used, other=0.0)
    acc, best, total = attend(
        tl.zeros([M, D], tl.float32),
        tl.full([M], float("-inf"), tl.float32),
        tl.zeros([M], tl.float32),
        queries,
        tl.full([M], 0, tl.int32) + (end - 1),
        kv + kv_head * (BLOCK_SIZE * HEAD_DIM),
        block_tables + request.to(tl.int64) * table_stride,
        first,
        end,
        block_stride,
        scale,
        True,
        KV_HEADS,
        BLOCK_SIZE,
        HEAD_DIM,
        D,
        BLOCK_N,
        PRECISION,
    )
    acc = acc * (1.0 / total)[:, None]
    first_head = request.to(tl.int64) * (KV_HEADS * GROUP)
    if SPLIT:
        row = (first_head + head) * splits + split
        tl.store(partial + row[:, None] * HEAD_DIM + dim[None, :], acc, mask=used)
        tl.store(log_sums + row, best + tl.log2(total), mask=member < GROUP)
    else:
        tl.store(out + first_head * HEAD_DIM + place, acc.to(out.dtype.element_ty), mask=used)


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["context_lens"])
def _combine(
    out,
    partial,
    log_sums,
    context_lens,
    splits,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
    S: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """A program: one head of one request. Weighs its splits by their softmax sums (logarithms to base 2)."""
    head = tl.program_id(0)
    request = tl.program_id(1)
    context = tl.load(context_lens + request)
    filled = tl.cdiv(context, _split(context, splits, BLOCK_N, MIN_SPLIT))
    split = tl.arange(0, S)
    dim = tl.arange(0, D)
    row = request.to(tl.int64) * HEADS + head
    sums = tl.load(log_sums + row * splits + split, mask=split < filled, other=float("-inf"))
    weights = tl.exp2(sums - tl.max(sums, 0))
    parts = tl.load(
        partial + (row * splits + split)[:, None] * HEAD_DIM + dim[None, :],
        mask=(split < filled)[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )
    mean = tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + row * HEAD_DIM + dim, mean.to(out.dtype.element_ty), mask=dim < HEAD_DIM)


def num_splits(programs: int, longest: int, sms: int) -> int:
    """Into how many pieces each context is cut.

    Args:
        programs: requests x KV heads.
        longest: tokens of the longest context, or a bound.
    """
    wanted = -(-PROGRAMS_PER_SM * sms // programs)
    return max(1, min(wanted, -(-longest // MIN_SPLIT), MAX_SPLITS))


def _tiles(padded_dim: int, itemsize: int) -> dict[str, int]:
    """Keys a loop iteration, warps a program, depth of the pipeline.

    The kernel only has to keep memory busy: 3 TB/s with some 700 ns of latency are 2 MB in flight, 16 KB an
    SM, twice that to be safe. A tile is at most 16 KiB of keys and as much of values. Five stages: two for a
    block's number to arrive, two for what stands in the block; so two tiles are in memory, one under way
    while the other is worked on, and three programs fit an H100's 228 KiB: 96 KiB in flight an SM.
    A tile of 32 KiB takes 2,500 cycles to arrive (13 bytes a cycle are an SM's share of the bandwidth) and
    some 460 instructions in each of 4 warps, one a scheduler. Tensor cores are used with one query in 16
    rows too: 64 instructions a warp for both products, where multiplying and adding up on CUDA cores, with
    every half to be widened first, would take hundreds.
    """
    return {"BLOCK_N": max(16, min(64, 16384 // (padded_dim * itemsize))), "num_warps": 4, "num_stages": 5}


def decode_attention(q: Tensor, kv: Tensor, batch: RaggedBatch, out: Tensor) -> None:
    """Fills the first ``batch.num_decodes`` rows of ``out``; arguments as ``TorchOps.attention``'s."""
    requests, heads, head_dim = batch.num_decodes, *q.shape[1:]
    _, _, kv_heads, block_size, _ = kv.shape
    group = heads // kv_heads
    splits = num_splits(requests * kv_heads, batch.longest_decode_context, gpu_of(q.device).sms)
    padded_dim = max(16, triton.next_power_of_2(head_dim))
    tiles = _tiles(padded_dim, q.element_size())
    partial, log_sums = out, out  # not written where nothing is split
    if splits > 1:
        partial = q.new_empty((requests, heads, splits, head_dim), dtype=torch.float32)
        log_sums = q.new_empty((requests, heads, splits), dtype=torch.float32)
    _decode[(kv_heads, splits, requests)](
        out,
        partial,
        log_sums,
        q,
        kv,
        batch.block_tables,
        batch.context_lens,
        q.stride(0),
        kv.stride(0),
        batch.block_tables.stride(0),
        splits,
        head_dim**-0.5 * LOG2E,
        SPLIT=splits > 1,
        KV_HEADS=kv_heads,
        GROUP=group,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        MIN_SPLIT=MIN_SPLIT,
        M=max(16, triton.next_power_of_2(group)),
        D=padded_dim,
        PRECISION="ieee" if q.dtype is torch.float32 else "tf32",
        enable_fp_fusion=True,
        **tiles,
    )
    if splits > 1:
        _combine[(heads, requests)](
            out,
            partial,
            log_sums,
            batch.context_lens,
            splits,
            HEADS=heads,
            HEAD_DIM=head_dim,
            MIN_SPLIT=MIN_SPLIT,
            S=MAX_SPLITS,
            D=padded_dim,
            BLOCK_N=tiles["BLOCK_N"],
            num_warps=8,
        )
