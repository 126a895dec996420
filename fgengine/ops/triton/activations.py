"""What stands between the two matrix multiplications of an MLP."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Columns a program: 8 a thread of 4 warps, one 16-byte access each. One row of Llama-3-8B's MLP makes 14
programs, of OPT-13B's 20, so a decode of 16 rows already fills 132 SMs."""


# Reads gate and up once and writes the product once.
@triton.jit
def _silu_mul(gate_up_ptr, out_ptr, stride, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gate = tl.load(gate_up_ptr + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * stride + size + at, mask=inside, other=0.0).to(tl.float32)
    product = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * size + at, product.to(out_ptr.dtype.element_ty), mask=inside)


# Reads and writes each element once; the bias, read by every row, stays in the cache.
@triton.jit
def _bias_relu(x_ptr, bias_ptr, stride, size, BLOCK: tl.constexpr):
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    here = x_ptr + tl.program_id(0).to(tl.int64) * stride + at
    x = tl.load(here, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(x < 0.0, 0.0, x)  # NaN stays NaN
    tl.store(here, x.to(x_ptr.dtype.element_ty), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    """[T, 2 * n], gate then up -> [T, n]."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, size, dtype=gate_up.dtype, device=gate_up.device)
    grid = (rows, triton.cdiv(size, BLOCK))
    _silu_mul[grid](gate_up, out, gate_up.stride(0), size, BLOCK=BLOCK, num_warps=4)
    return out


def bias_relu_(x: Tensor, bias: Tensor) -> Tensor:
    """relu(x + bias), in place."""
    rows, size = x.shape
    _bias_relu[rows, triton.cdiv(size, BLOCK)](x, bias, x.stride(0), size, BLOCK=BLOCK, num_warps=4)
    return x
