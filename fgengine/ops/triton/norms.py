"""RMSNorm and LayerNorm, alone or of the sum of an input and the residual."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


# One program per row. The row remains in registers from load to store, so each element is read once and
# written once (twice with a residual), which is the minimum. 16 elements per thread make two 16-byte
# accesses. A decode step has few rows and is bound by latency, so the weights are loaded before the sums.
# x and residual [rows, SIZE] may be strided; weight and bias [SIZE]; out [rows, SIZE] is contiguous.
@triton.jit
def _norm(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    x_stride,
    residual_stride,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDED: tl.constexpr,
    CENTRED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < SIZE
    x = tl.load(x_ptr + row * x_stride + at, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if CENTRED:
        bias = tl.load(bias_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ADDED:
        residual_row = residual_ptr + row * residual_stride + at
        residual = tl.load(residual_row, mask=inside, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(residual.dtype)  # rounded, as it is stored
        tl.store(residual_row, x, mask=inside)
    wide = x.to(tl.float32)
    if CENTRED:
        wide = tl.where(inside, wide - tl.sum(wide) / SIZE, 0.0)
    wide = wide * tl.rsqrt(tl.sum(wide * wide) / SIZE + eps) * weight
    if CENTRED:
        wide += bias
    tl.store(out_ptr + row * SIZE + at, wide.to(out_ptr.dtype.element_ty), mask=inside)


def norm(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Return the LayerNorm (RMSNorm if ``bias`` is None) of x, [T, size], contiguous.

    If ``residual`` [T, size] is given, x is first added to it in place, and the sum is normalized.
    """
    rows, size = x.shape
    out = torch.empty(rows, size, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(size)
    _norm[(rows,)](
        x,
        residual,
        weight,
        bias,
        out,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        eps,
        SIZE=size,
        BLOCK=block,
        ADDED=residual is not None,
        CENTRED=bias is not None,
        num_warps=min(max(block // 512, 1), 16),
    )
    return out
