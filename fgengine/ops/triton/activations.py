"""The activations between the two matrix multiplications of an MLP."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Columns per program: 8 for each thread of 4 warps, one 16-byte access each. One row of Llama-3-8B's MLP is
14 programs, one of OPT-13B's is 20. So a decode of 16 rows already fills 132 SMs."""


# gate_up [rows, 2 * size] (rows `stride` elements apart) -> out [rows, size], contiguous, same dtype.
# Grid: (rows, blocks of columns). Reads gate and up once and writes the product once.
@triton.jit
def _silu_mul(gate_up_ptr, out_ptr, stride, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gate = tl.load(gate_up_ptr + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride + size + at, mask=inside, other=0.0).to(tl.float32)
    product = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * size + at, product.to(out_ptr.dtype.element_ty), mask=inside)


# x [rows, size] in place, rows `stride` elements apart; bias [size]. Grid: (rows, blocks of columns).
# Reads and writes each element once. The bias is read by every row, so it remains in the cache.
@triton.jit
def _bias_relu(x_ptr, bias_ptr, stride, size, BLOCK: tl.constexpr):
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    here = x_ptr + tl.program_id(0).to(tl.int64) * stride + at
    x = tl.load(here, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(x < 0.0, 0.0, x)  # NaN remains NaN
    tl.store(here, x.to(x_ptr.dtype.element_ty), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up: [T, 2 * n] (gate, then up) -> [T, n], contiguous."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    grid = (rows, triton.cdiv(size, BLOCK))
    _silu_mul[grid](gate_up, out, gate_up.stride(0), size, BLOCK=BLOCK, num_warps=4)
    return out


def bias_relu_(x: Tensor, bias: Tensor) -> Tensor:
    """Compute relu(x + bias) in place and return x [T, n]; bias [n]."""
    rows, size = x.shape
    _bias_relu[rows, triton.cdiv(size, BLOCK)](x, bias, x.stride(0), size, BLOCK=BLOCK, num_warps=4)
    return x
