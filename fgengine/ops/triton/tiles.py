"""The inner loop of both attention kernels: queries attend to a part of one request's paged context."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = 1.4426950408889634
"""log2(e). Kernels compute e^x as 2^(x * LOG2E), because GPUs have an instruction for powers of two."""


@triton.jit
def attend(
    acc,
    best,
    total,
    q,
    position,
    kv,
    table,
    first,
    end,
    block_stride,
    scale,
    MASKED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Continue an online softmax over the keys ``first`` to ``end - 1`` of a context, BLOCK_N at a time.

    Args:
        acc: [M, D] float32, weighted sum of values so far.
        best: [M] float32, largest score so far, multiplied by ``scale``.
        total: [M] float32, sum of weights so far; weights are powers of two, relative to ``best``.
        q: [M, D], zero beyond HEAD_DIM.
        position: [M] int32, each query's position in the context. If MASKED, a query does not attend to later
            keys. On the first call, every query must attend to at least one key of the first tile; otherwise
            its ``best`` remains -inf.
        kv: pointer to the head's keys in block 0. Its values are KV_HEADS * BLOCK_SIZE * HEAD_DIM elements
            further.
        table: pointer to the request's block table.
        scale: head_dim ** -0.5 * LOG2E.
        MASKED: may be False if all queries attend to all keys from first to end, and these keys are a
            multiple of BLOCK_N.

    Returns:
        The updated (acc, best, total).
    """
    offset = tl.arange(0, BLOCK_N)
    dim = tl.arange(0, D)
    for start in tl.range(first, end, BLOCK_N):
        at = start + offset
        if MASKED:
            inside = at < end
            block = tl.load(table + at // BLOCK_SIZE, mask=inside, other=0)
            # Memory after the context may hold anything, even NaN, and a weight of 0 times NaN is NaN.
            loaded = inside[:, None] & (dim < HEAD_DIM)[None, :]
        else:
            block = tl.load(table + at // BLOCK_SIZE)
            loaded = tl.full([BLOCK_N, D], 1, tl.int1) & (dim < HEAD_DIM)[None, :]
        # int64, because a pool may have more than 2 ** 31 elements.
        row = block.to(tl.int64) * block_stride + at % BLOCK_SIZE * HEAD_DIM
        keys = kv + row[:, None] + dim[None, :]
        k = tl.load(keys, mask=loaded, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            scores = tl.where(at[None, :] <= position[:, None], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, 1) * scale)
        weights = tl.exp2(scores * scale - higher[:, None])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(weights, 1)
        v = tl.load(keys + KV_HEADS * BLOCK_SIZE * HEAD_DIM, mask=loaded, other=0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        best = higher
    return acc, best, total
