"""Attention for requests with several new tokens: flash attention over the paged context.

A request's new tokens may follow tokens computed before (chunked prefill). Requests may differ in length.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fgengine.ops.batch import RaggedBatch
from fgengine.ops.triton.gpu import gpu_of
from fgengine.ops.triton.tiles import LOG2E, attend


@triton.jit(
    do_not_specialize=["table_stride", "first_request"],
    do_not_specialize_on_alignment=["block_tables", "query_starts", "context_lens"],
)
def _prefill(
    out,
    q,
    kv,
    block_tables,
    query_starts,
    context_lens,
    q_stride,
    block_stride,
    table_stride,
    first_request,
    scale,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute attention for M rows of one KV head of one request. A row is one query head of one new token.

    Grid: (KV heads, requests, tiles of M rows). A request's last rows, which have the longest contexts, are
    processed first, for all heads. So the longest programs start first and the shortest fill the gaps at the
    end, and programs that run at the same time read the same blocks.

    Args:
        out: [T, heads * HEAD_DIM], contiguous.
        q: [T, heads, HEAD_DIM], rows ``q_stride`` elements apart.
        kv: one layer of the pool, see ``TorchOps``; blocks are ``block_stride`` elements apart.
        block_tables: [B, table_stride] int32.
        query_starts: [B + 1] int32.
        context_lens: [B] int32.
        first_request: the first request with several new tokens.
        D: HEAD_DIM, padded to a power of two of at least 16.
    """
    kv_head = tl.program_id(0)
    request = first_request + tl.program_id(1)
    begin = tl.load(query_starts + request)
    new = tl.load(query_starts + request + 1) - begin
    tile = tl.cdiv(new * GROUP, M) - 1 - tl.program_id(2)
    if tile < 0:
        return
    old = tl.load(context_lens + request) - new

    row = tile * M + tl.arange(0, M)
    dim = tl.arange(0, D)
    token = row // GROUP
    head = kv_head * GROUP + row % GROUP
    used = (token < new)[:, None] & (dim < HEAD_DIM)[None, :]
    place = head[:, None] * HEAD_DIM + dim[None, :]
    at = (begin + token).to(tl.int64)
    queries = tl.load(q + at[:, None] * q_stride + place, mask=used, other=0.0)

    position = old + tl.minimum(token, new - 1)
    seen_by_all = old + tile * M // GROUP + 1
    end = old + tl.minimum((tile * M + M - 1) // GROUP + 1, new)
    unmasked_end = seen_by_all // BLOCK_N * BLOCK_N
    kv += kv_head * (BLOCK_SIZE * HEAD_DIM)
    table = block_tables + request.to(tl.int64) * table_stride
    acc = tl.zeros([M, D], tl.float32)
    best = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    for masked in tl.static_range(2):  # first the keys that all rows attend to, then the diagonal
        acc, best, total = attend(
            acc,
            best,
            total,
            queries,
            position,
            kv,
            table,
            unmasked_end if masked else 0,
            end if masked else unmasked_end,
            block_stride,
            scale,
            masked == 1,
            KV_HEADS,
            BLOCK_SIZE,
            HEAD_DIM,
            D,
            BLOCK_N,
            PRECISION,
        )
    acc = acc * (1.0 / total)[:, None]
    written = out + at[:, None] * (KV_HEADS * GROUP * HEAD_DIM) + place
    tl.store(written, acc.to(out.dtype.element_ty), mask=used)


def _tiles(head_dim: int, itemsize: int, shared_memory: int) -> dict[str, int]:
    """Return the rows and keys of a tile, the warps per program and the depth of the pipeline.

    128 rows, because each key and value is read once for all of them. This makes 128 multiplications per
    byte, so 400 TFLOP/s need 3 TB/s from the L2 cache, half of its bandwidth; 64 rows would need all of it.
    Eight warps hold the sums of a tile (64 registers per thread at head size 128) without spilling.

    128 keys if the shared memory allows. Then the two products of a tile take 2,048 cycles of the tensor
    cores, and the code between them about 700 instructions in each of two warps per scheduler. With 64 keys,
    the products would take 1,024 cycles, but the instructions 890 cycles, because only some of them are
    halved.

    Five stages: two to load a block's number, two to load its content. So the loads of a tile are issued two
    iterations before they are needed, and three tiles of keys and values are in shared memory.
    """
    if itemsize == 4:  # float32 products are exact, on CUDA cores
        return {"M": 32, "BLOCK_N": 16, "num_warps": 8, "num_stages": 2}
    padded_dim = triton.next_power_of_2(head_dim)
    keys = 128 if head_dim == padded_dim else 64  # a mask over the dimensions needs the last free registers
    while keys > 16 and (128 + 3 * 2 * keys) * padded_dim * itemsize + 2048 > shared_memory:
        keys //= 2
    return {"M": 128, "BLOCK_N": keys, "num_warps": 8, "num_stages": 5}


def prefill_attention(q: Tensor, kv: Tensor, batch: RaggedBatch, out: Tensor) -> None:
    """Compute the rows of ``out`` [T, heads * head_dim] from ``batch.num_decodes`` on.

    The other arguments are those of ``TorchOps.attention``.
    """
    heads, head_dim = q.shape[1:]
    _, _, kv_heads, block_size, _ = kv.shape
    group = heads // kv_heads
    rows = batch.longest_query * group
    padded_dim = max(16, triton.next_power_of_2(head_dim))
    tiles = _tiles(head_dim, q.element_size(), gpu_of(q.device).shared_memory)
    grid = (kv_heads, len(batch.query_lens) - batch.num_decodes, triton.cdiv(rows, tiles["M"]))
    _prefill[grid](
        out,
        q,
        kv,
        batch.block_tables,
        batch.query_starts,
        batch.context_lens,
        q.stride(0),
        kv.stride(0),
        batch.block_tables.stride(0),
        batch.num_decodes,
        head_dim**-0.5 * LOG2E,
        KV_HEADS=kv_heads,
        GROUP=group,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        D=padded_dim,
        PRECISION="ieee" if q.dtype is torch.float32 else "tf32",
        enable_fp_fusion=True,
        **tiles,
    )
