"""Sampling without a sort. Up to rounding of sums, it takes the same token as ``TorchOps.sample``.

Top-k and top-p each become a cut, which is a logit value: all larger logits remain, and the first few of the
logits equal to it. To find the cut, the logits' format is mapped to integer keys with the same order. The
search divides the range of keys into four parts at a time; it counts the logits above each part, or sums
their masses (unnormalized probabilities). Masses are summed in float32 within a lane (a lane reads every
BLOCK-th logit) and in float64 across lanes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 8192
"""Logits per tile: 8 for each thread of 32 warps, one 16-byte access each (16-bit logits)."""
SHIFT = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""Number of low bits of a float32 that are zero in each format."""


@triton.jit
def _key(value, SHIFT: tl.constexpr):
    """Return int64 keys with the same order as the float32 ``value``."""
    bits = value.to(tl.int32, bitcast=True) >> SHIFT
    return (bits ^ ((bits >> 31) & (0x7FFFFFFF >> SHIFT))).to(tl.int64)


@triton.jit
def _value(key, SHIFT: tl.constexpr):
    """Return the float32 value of a key; NaN for a key above that of infinity."""
    bits = key.to(tl.int32)
    return ((bits ^ ((bits >> 31) & (0x7FFFFFFF >> SHIFT))) << SHIFT).to(tl.float32, bitcast=True)


@triton.jit
def _tile(row, start, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """Load logits [BLOCK] of a row from index ``start``, as float32; -inf beyond the vocabulary."""
    at = start + tl.arange(0, BLOCK)
    return tl.load(row + at, mask=at < VOCAB, other=-float("inf")).to(tl.float32)


@triton.jit
def _masses_above(row, first, second, third, top, scale, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """Return the total mass (float64) of the logits above each of three values.

    ``top`` is the row's largest logit; a logit's mass is exp((logit - top) * scale).
    """
    a = tl.zeros([BLOCK], tl.float32)
    b = tl.zeros([BLOCK], tl.float32)
    c = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB, BLOCK):
        logit = _tile(row, start, VOCAB, BLOCK)
        mass = tl.exp((logit - top) * scale)
        a += tl.where(logit > first, mass, 0.0)
        b += tl.where(logit > second, mass, 0.0)
        c += tl.where(logit > third, mass, 0.0)
    return tl.sum(a.to(tl.float64)), tl.sum(b.to(tl.float64)), tl.sum(c.to(tl.float64))


@triton.jit
def _counts_from(row, first, second, third, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """Return the number of logits >= each of three values. A lane's counts share one word, 10 bits each."""
    counts = tl.zeros([BLOCK], tl.int32)
    for start in range(0, VOCAB, BLOCK):
        logit = _tile(row, start, VOCAB, BLOCK)
        counts += tl.where(logit >= first, 1, 0)
        counts += tl.where(logit >= second, 1 << 10, 0)
        counts += tl.where(logit >= third, 1 << 20, 0)
    return tl.sum(counts & 1023), tl.sum((counts >> 10) & 1023), tl.sum(counts >> 20)


@triton.jit
def _top_k_key(row, low, high, k, VOCAB: tl.constexpr, BLOCK: tl.constexpr, SHIFT: tl.constexpr):
    """Return the largest key in [low, high] that at least k logits reach. At least k must reach ``low``."""
    while low < high:
        step = (high - low + 4) // 4
        a, b, c = _counts_from(
            row,
            _value(low + step, SHIFT),
            _value(low + 2 * step, SHIFT),
            _value(low + 3 * step, SHIFT),
            VOCAB,
            BLOCK,
        )
        low += step * ((a >= k).to(tl.int64) + (b >= k).to(tl.int64) + (c >= k).to(tl.int64))
        high = tl.minimum(high, low + step - 1)
    return low


@triton.jit
def _top_p_key(
    row, low, high, limit, top, scale, VOCAB: tl.constexpr, BLOCK: tl.constexpr, SHIFT: tl.constexpr
):
    """Return the smallest key in [low, high] with a mass below ``limit`` above it, and that mass.

    ``high`` is the key of the largest logit.
    """
    above = limit * 0.0
    while low < high:
        step = (high - low + 4) // 4
        a, b, c = _masses_above(
            row,
            _value(low + step - 1, SHIFT),
            _value(low + 2 * step - 1, SHIFT),
            _value(low + 3 * step - 1, SHIFT),
            top,
            scale,
            VOCAB,
            BLOCK,
        )
        # The first of the four parts whose last key has a mass below the limit above it.
        part = (a >= limit).to(tl.int64) + (b >= limit).to(tl.int64) + (c >= limit).to(tl.int64)
        end = low + (part + 1) * step - 1
        if end < high:
            high = end
            above = tl.where(part == 0, a, tl.where(part == 1, b, c))
        low += part * step
    return low, above


# One program per row. logits [R, VOCAB], rows `stride` elements apart; rows [R, 4] float64 as in
# TorchOps.sample; tokens [R] int64. A row of Llama-3-8B's logits is 256 KB, in the L2 cache after the first
# pass. A draw from the complete vocabulary takes about 2.5 passes, each cut about five (bfloat16) or six
# (float16) more. A row is not shared between programs, because that would need a launch for each pass, or a
# barrier across programs.
@triton.jit
def _sample(
    logits_ptr,
    rows_ptr,
    tokens_ptr,
    stride,
    COLDEST: tl.constexpr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    SHIFT: tl.constexpr,
):
    row = logits_ptr + tl.program_id(0).to(tl.int64) * stride
    asked = rows_ptr + tl.program_id(0) * 4
    temperature = tl.load(asked)
    top_k = tl.load(asked + 1)
    top_p = tl.load(asked + 2)
    draw = tl.load(asked + 3)

    largest = tl.full([BLOCK], -float("inf"), tl.float32)
    for start in range(0, VOCAB, BLOCK):
        largest = tl.maximum(largest, _tile(row, start, VOCAB, BLOCK))
    top = tl.max(largest)
    lane = tl.arange(0, BLOCK)

    if temperature == 0.0:
        first = tl.full([BLOCK], VOCAB - 1, tl.int32)
        for start in range(0, VOCAB, BLOCK):
            found = _tile(row, start, VOCAB, BLOCK) == top
            first = tl.minimum(first, tl.where(found, start + lane, VOCAB - 1))
        token = tl.min(first)
    else:
        scale = (1.0 / tl.maximum(temperature, COLDEST)).to(tl.float32)
        high = _key(top, SHIFT)
        low = _key(tl.full([], -float("inf"), tl.float32), SHIFT)
        # These logits remain: those above ``cut``, and the first ``equals`` of those equal to it.
        cut = _value(low, SHIFT)
        equals = tl.full([], 0, tl.int32)

        limited = (top_k > 0.0) & (top_k < VOCAB)
        k = top_k.to(tl.int32)
        if limited:
            # The smallest of the lanes' largest logits is a lower bound: BLOCK >= k logits reach it.
            if k <= BLOCK:
                low = _key(tl.min(largest), SHIFT)
            low = _top_k_key(row, low, high, k, VOCAB, BLOCK, SHIFT)
            cut = _value(low, SHIFT)

        masses = tl.zeros([BLOCK], tl.float32)
        counts = tl.zeros([BLOCK], tl.int32)
        for start in range(0, VOCAB, BLOCK):
            logit = _tile(row, start, VOCAB, BLOCK)
            masses += tl.where(logit > cut, tl.exp((logit - top) * scale), 0.0)
            counts += tl.where(logit > cut, 1, 0)
        total = tl.sum(masses.to(tl.float64))
        if limited:
            equals = k - tl.sum(counts)
            total += equals * tl.exp((cut - top) * scale).to(tl.float64)

        if top_p < 1.0:
            limit = top_p * total
            # At this distance below the largest logit, even VOCAB logits have less mass than may be cut off.
            far = 1.0 + tl.log(VOCAB / (1.0 - top_p).to(tl.float32))
            low = tl.minimum(tl.maximum(low, _key(top - far / scale, SHIFT)), high)
            low, above = _top_p_key(row, low, high, limit, top, scale, VOCAB, BLOCK, SHIFT)
            cut = _value(low, SHIFT)
            each = tl.exp((cut - top) * scale).to(tl.float64)
            # The number that reaches the limit. It is at most what top-k left, because the limit is a share
            # of the mass that top-k left.
            equals = tl.minimum(tl.ceil((limit - above) / each), VOCAB * 1.0).to(tl.int32)
            total = above + equals * each

        # Find the tile in which the cumulative mass passes the draw. If none does, take the last with a mass.
        target = draw * total
        each = tl.exp((cut - top) * scale).to(tl.float64)
        chosen = tl.full([], 0, tl.int32)
        before = total * 0.0
        equals_before = tl.full([], 0, tl.int32)
        start = tl.full([], 0, tl.int32)
        passed = total * 0.0
        equals_passed = tl.full([], 0, tl.int32)
        while (start < VOCAB) & (passed <= target):
            logit = _tile(row, start, VOCAB, BLOCK)
            mass = tl.sum(tl.where(logit > cut, tl.exp((logit - top) * scale), 0.0).to(tl.float64))
            here = tl.sum((logit == cut).to(tl.int32))
            mass += tl.minimum(here, tl.maximum(equals - equals_passed, 0)) * each
            if mass > 0.0:
                chosen = start
                before = passed
                equals_before = equals_passed
            passed += mass
            equals_passed += here
            start += BLOCK

        logit = _tile(row, chosen, VOCAB, BLOCK)
        equal = (logit == cut).to(tl.int32)
        remains = (logit > cut) | ((equal > 0) & (equals_before + tl.cumsum(equal, 0) <= equals))
        mass = tl.where(remains, tl.exp((logit - top) * scale), 0.0)
        cumulative = before + tl.cumsum(mass.to(tl.float64), 0)
        picked = tl.min(tl.where(cumulative > target, lane, BLOCK))
        last = tl.max(tl.where(mass > 0.0, lane, 0))
        token = chosen + tl.minimum(picked, last)
    tl.store(tokens_ptr + tl.program_id(0), token.to(tl.int64))


def sample(logits: Tensor, rows: Tensor, coldest: float) -> Tensor:
    """Compute ``TorchOps.sample``; ``coldest`` is the lower bound of temperatures."""
    count, vocab = logits.shape
    tokens = torch.empty(count, dtype=torch.int64, device=logits.device)
    block = min(BLOCK, triton.next_power_of_2(vocab))
    _sample[(count,)](
        logits,
        rows,
        tokens,
        logits.stride(0),
        COLDEST=coldest,
        VOCAB=vocab,
        BLOCK=block,
        SHIFT=SHIFT[logits.dtype],
        num_warps=max(block // 256, 1),
    )
    return tokens
