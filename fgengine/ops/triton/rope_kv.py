"""Rotates queries and keys (RoPE) and stores keys and values in the paged pool, in one kernel launch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fgengine.ops.batch import RaggedBatch

TILE = 512
"""Elements per tile: 8 for each thread of 2 warps, one 16-byte access each. A token of Llama-3-8B is 6
programs, one of OPT-13B is 20."""


# A program handles one token and HEADS of its heads: one tile [HEADS, HEAD_DIM], or with a rope two tiles
# [HEADS, HEAD_DIM / 2]. With a rope, queries are read once and written once, and keys are written twice (in
# place and to the pool). Values are only copied. Without a rope, queries are not touched at all.
# Shapes: qkv [tokens, (QUERY_HEADS + 2 * KV_HEADS) * HEAD_DIM]; kv as in TorchOps.write_kv;
# rope [max_position, HEAD_DIM] float32; positions, slots [tokens] int64.
# Offsets are int64, because a pool may hold more than 2^31 elements.
# positions and slots are read as single elements and may be parts of larger tensors, so the kernel is not
# specialized on their alignment.
@triton.jit(do_not_specialize_on_alignment=["positions_ptr", "slots_ptr"])
def _rope_kv(
    qkv_ptr,
    kv_ptr,
    rope_ptr,
    positions_ptr,
    slots_ptr,
    qkv_stride,
    block_stride,
    kind_stride,
    head_stride,
    place_stride,
    FIRST: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    HEADS: tl.constexpr,
    ROTATED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = FIRST + tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    at = tl.arange(0, PADDED)[None, :]
    inside = (head < QUERY_HEADS + 2 * KV_HEADS) & (at < WIDTH)
    here = qkv_ptr + token * qkv_stride + head * HEAD_DIM + at
    low = tl.load(here, mask=inside)
    is_value = head >= QUERY_HEADS + KV_HEADS
    slot = tl.load(slots_ptr + token)
    stored = kv_ptr + (slot // BLOCK_SIZE) * block_stride + (slot % BLOCK_SIZE) * place_stride
    kind = is_value.to(tl.int32)  # with a product the compiler can prove alignment, with tl.where it cannot
    stored += kind * kind_stride + (head - QUERY_HEADS - kind * KV_HEADS) * head_stride + at
    is_stored = inside & (head >= QUERY_HEADS)
    if ROTATED:
        high = tl.load(here + WIDTH, mask=inside)
        # The angles are the same for every head, but each head loads them: sharing would need barriers.
        angle = rope_ptr + tl.load(positions_ptr + token) * HEAD_DIM + (at + tl.zeros_like(head))
        cos = tl.load(angle, mask=inside, other=0.0)
        sin = tl.load(angle + WIDTH, mask=inside, other=0.0)
        wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
        rotated_low = (wide_low * cos - wide_high * sin).to(low.dtype)
        rotated_high = (wide_high * cos + wide_low * sin).to(low.dtype)
        is_rotated = inside & (head < QUERY_HEADS + KV_HEADS)
        tl.store(here, rotated_low, mask=is_rotated)
        tl.store(here + WIDTH, rotated_high, mask=is_rotated)
        tl.store(stored + WIDTH, tl.where(is_value, high, rotated_high), mask=is_stored)
        low = tl.where(is_value, low, rotated_low)
    tl.store(stored, low, mask=is_stored)


def write_kv(qkv: Tensor, kv: Tensor, batch: RaggedBatch, rope: Tensor | None) -> None:
    """Compute ``TorchOps.write_kv`` in one launch; same arguments."""
    _, _, kv_heads, block_size, head_dim = kv.shape
    query_heads = qkv.shape[1] // head_dim - 2 * kv_heads
    first = query_heads if rope is None else 0
    width = head_dim if rope is None else head_dim // 2
    padded = triton.next_power_of_2(width)
    heads = max(TILE // padded, 1)
    _rope_kv[qkv.shape[0], triton.cdiv(query_heads + 2 * kv_heads - first, heads)](
        qkv,
        kv,
        rope,
        batch.positions,
        batch.slots,
        qkv.stride(0),
        *kv.stride()[:4],
        FIRST=first,
        QUERY_HEADS=query_heads,
        KV_HEADS=kv_heads,
        BLOCK_SIZE=block_size,
        HEAD_DIM=head_dim,
        WIDTH=width,
        PADDED=padded,
        HEADS=heads,
        ROTATED=rope is not None,
        num_warps=2,
    )
