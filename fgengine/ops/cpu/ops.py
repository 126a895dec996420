"""The operations on a CPU: our own kernels where they apply, plain torch elsewhere."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fgengine.ops.batch import RaggedBatch
from fgengine.ops.reference import TorchOps

MAX_HEAD_DIM = 256  # as in kernels.c
MAX_GROUP = 64


class CpuOps(TorchOps):
    """Tensors of one dtype, on the CPU; results agree with TorchOps up to rounding."""

    name = "cpu kernels"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._lanes = int(library.lanes())

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._rms_norm(None, x.contiguous(), weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        if not residual.is_contiguous():
            return super().add_rms_norm(x, residual, weight, eps)
        return self._rms_norm(x.contiguous(), residual, weight, eps)

    def _rms_norm(self, x: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(residual)
        rows, size = residual.shape
        added = None if x is None else x.data_ptr()
        self._library.rms_norm(out.data_ptr(), added, residual.data_ptr(), weight.data_ptr(), eps, rows, size)
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        if size % self._lanes or not gate_up.is_contiguous():
            return super().silu_mul(gate_up)
        out = gate_up.new_empty(rows, size)
        self._library.silu_mul(out.data_ptr(), gate_up.data_ptr(), rows, size)
        return out

    def write_kv(self, qkv: Tensor, kv: Tensor, batch: RaggedBatch, rope: Tensor | None = None) -> None:
        _, _, kv_heads, block_size, dim = kv.shape
        if not self._fits(kv) or (rope is not None and dim // 2 % self._lanes) or not qkv.is_contiguous():
            super().write_kv(qkv, kv, batch, rope)
            return
        self._library.write_kv(
            qkv.data_ptr(),
            kv.data_ptr(),
            None if rope is None else rope.data_ptr(),
            batch.positions.data_ptr(),
            batch.slots.data_ptr(),
            qkv.shape[0],
            qkv.shape[1] // dim - 2 * kv_heads,
            kv_heads,
            dim,
            block_size,
            kv.stride(0),
        )

    def attention(self, q: Tensor, kv: Tensor, batch: RaggedBatch) -> Tensor:
        tokens, heads, dim = q.shape
        _, _, kv_heads, block_size, _ = kv.shape
        if not self._fits(kv) or q.stride()[1:] != (dim, 1) or heads // kv_heads > MAX_GROUP:
            return super().attention(q, kv, batch)
        out = q.new_empty(tokens, heads * dim)
        self._library.attention(
            out.data_ptr(),
            q.data_ptr(),
            kv.data_ptr(),
            batch.block_tables.data_ptr(),
            batch.query_starts.data_ptr(),
            batch.context_lens.data_ptr(),
            len(batch.query_lens),
            batch.block_tables.shape[1],
            heads,
            kv_heads,
            dim,
            block_size,
            kv.stride(0),
            q.stride(0),
        )
        return out

    def _fits(self, kv: Tensor) -> bool:
        """Whether the kernels know this head size and these strides."""
        dim = kv.shape[4]
        return dim <= MAX_HEAD_DIM and dim % self._lanes == 0 and kv[0].is_contiguous()
