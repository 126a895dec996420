"""What both attention kernels do: queries attend to a stretch of one request's paged context."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = 1.4426950408889634
"""Kernels take powers of two, the processor's own instruction; scores are scaled by this besides."""


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
    """Goes on with a softmax over the keys ``first .. end`` of a context, BLOCK_N at a time.

    Args:
        acc, best, total: [M, D] sums of values, [M] largest scores and [M] sums of weights so far; the
            weights are powers of two, relative to ``best``.
        q: [M, D], zero beyond HEAD_DIM.
        position: [M], each query's place in the context: keys behind it are not seen (if MASKED). Every
            query must see a key of the first stretch it meets, else its ``best`` stays -inf.
        kv: the head's first keys; its values stand KV_HEADS tiles further on.
        table: the request's block table.
        MASKED: False where all queries see all of first .. end and that is a whole number of tiles.
    """
    offset = tl.arange(0, BLOCK_N)
    dim = tl.arange(0, D)
    for start in tl.range(first, end, BLOCK_N):
        at = start + offset
        if MASKED:
            inside = at < end
            block = tl.load(table + at // BLOCK_SIZE, mask=inside, other=0)
            # What stands behind the context is anything, even NaN: as a value it would be 0 * NaN.
            loaded = inside[:, None] & (dim < HEAD_DIM)[None, :]
        else:
            block = tl.load(table + at // BLOCK_SIZE)
            loaded = tl.full([BLOCK_N, D], 1, tl.int1) & (dim < HEAD_DIM)[None, :]
        # A pool has more than 2 ** 31 elements.
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
