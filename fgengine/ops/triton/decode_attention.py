"""Attention for requests with one new token: flash decoding over the paged context.

A long context is split between several programs; a second kernel combines their partial results.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgengine.ops.batch import RaggedBatch
from fgengine.ops.triton.gpu import gpu_of
from fgengine.ops.triton.tiles import LOG2E, attend

MIN_SPLIT = 128
"""Minimum tokens of a split. 128 tokens of one head are 32 to 64 KiB and two loop iterations, whose loads are
both issued before the first is awaited. Smaller splits would add programs, but no bytes in flight."""
MAX_SPLITS = 64
"""Maximum splits of a context. The combining kernel loads all splits of a head in one tile of this fixed
size. A tile size that follows the number of splits would need a new compilation while the engine serves."""
PROGRAMS_PER_SM = 4
"""Contexts are split until each SM has this number of programs: three that run at a time (see ``_tiles``) and
some that start when short contexts end. With fewer programs, one long context would determine the time. More
programs only add partial results to combine (some KiB per split, which remain in the L2 cache)."""


@triton.jit
def _split(context, splits, BLOCK_N: tl.constexpr, MIN_SPLIT: tl.constexpr):
    """Return the tokens of each split, a multiple of the tile size.

    It is computed from the real context length, which a captured launch can only read on the device. So all
    programs have work.
    """
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
    """Compute attention for the queries of one KV head of one request, over one split of its context.

    Grid: (KV heads, splits, requests). KV heads change fastest: they are contiguous in a block, so programs
    that run at the same time read neighbouring memory.

    Args:
        out: [T, heads * HEAD_DIM], contiguous. Written only if not SPLIT.
        partial: [requests, heads, splits, HEAD_DIM] float32, the result of each split. Only if SPLIT.
        log_sums: [requests, heads, splits] float32, log2 of each split's sum of weights. Only if SPLIT.
        q: [T, heads, HEAD_DIM], rows ``q_stride`` elements apart; row r is the query of request r.
        kv: one layer of the pool, see ``TorchOps``; blocks are ``block_stride`` elements apart.
        block_tables: [requests, table_stride] int32.
        context_lens: [requests] int32.
        M, D: GROUP (query heads per KV head) and HEAD_DIM, padded to powers of two of at least 16.
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
    """Combine the splits of one head of one request, weighted by their softmax sums.

    Grid: (heads, requests). Shapes as in ``_decode``; S is MAX_SPLITS.
    """
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
    """Return the number of splits of each context.

    Args:
        programs: requests * KV heads.
        longest: tokens of the longest context, or an upper bound.
        sms: number of SMs of the GPU.
    """
    wanted = -(-PROGRAMS_PER_SM * sms // programs)
    return max(1, min(wanted, -(-longest // MIN_SPLIT), MAX_SPLITS))


def _tiles(padded_dim: int, itemsize: int) -> dict[str, int]:
    """Return the keys per loop iteration, the warps per program and the depth of the pipeline.

    The kernel only needs to keep the memory busy. 3 TB/s at about 700 ns of latency need 2 MB in flight,
    which is 16 KB per SM; aim at twice that. A tile has up to 16 KiB of keys and up to 16 KiB of values.
    There are five stages: two to load a block's number, two to load its content. So two tiles are in shared
    memory: one arrives while the other is processed. Three programs fit an H100's 228 KiB: 96 KiB in flight
    per SM.

    A tile of 32 KiB takes 2,500 cycles to arrive (an SM's share of the bandwidth is 13 bytes per cycle). To
    process it takes about 460 instructions in each of 4 warps, one warp per scheduler. Tensor cores are used
    even for one query in a tile of 16 rows. They need 64 instructions per warp for both products; CUDA cores
    would need hundreds, because they must convert every 16-bit element to float32 first.
    """
    return {"BLOCK_N": max(16, min(64, 16384 // (padded_dim * itemsize))), "num_warps": 4, "num_stages": 5}


def decode_attention(q: Tensor, kv: Tensor, batch: RaggedBatch, out: Tensor) -> None:
    """Compute the first ``batch.num_decodes`` rows of ``out`` [T, heads * head_dim].

    The other arguments are those of ``TorchOps.attention``.
    """
    requests, heads, head_dim = batch.num_decodes, *q.shape[1:]
    _, _, kv_heads, block_size, _ = kv.shape
    group = heads // kv_heads
    splits = num_splits(requests * kv_heads, batch.longest_decode_context, gpu_of(q.device).sms)
    padded_dim = max(16, triton.next_power_of_2(head_dim))
    tiles = _tiles(padded_dim, q.element_size())
    partial, log_sums = out, out  # placeholders: without splits, the kernel does not write them
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
