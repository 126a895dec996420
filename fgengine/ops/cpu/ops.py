"""The operations on a CPU: our own kernels if they support the sizes and strides, else plain torch."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fgengine.ops.batch import RaggedBatch
from fgengine.ops.cpu.instructions import Instruction, Kind, address, rows_of, run, step_of
from fgengine.ops.reference import TorchOps

if TYPE_CHECKING:
    from fgengine.model.layers import Linear

MAX_HEAD_DIM = 256  # as in kernels.c
MAX_GROUP = 64
LOWEST = {torch.bfloat16: (16, 0xFF80), torch.float32: (32, 0xFF800000)}
"""For each dtype: the number of bits of a number, and the bits of -infinity."""


class CpuOps(TorchOps):
    """CPU operations for one dtype; results equal those of TorchOps up to rounding. See there for the shapes.

    Each operation is one instruction, executed at once. ``program.Recorder`` records the instructions
    instead.
    """

    name = "cpu kernels"

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        self._lanes = int(library.lanes())

    def execute(self, instruction: Instruction, rows: int, batch: RaggedBatch | None = None) -> None:
        """Run one instruction over ``rows`` rows."""
        run(self.library, (Instruction * 1)(instruction), step_of(rows, batch))

    def new(self, like: Tensor, width: int) -> Tensor:
        """Return an uninitialized tensor [rows of ``like``, width] for an operation's result."""
        return like.new_empty(like.shape[0], width)

    def fall_back(self) -> None:
        """Called before an operation that torch computes because our kernels do not support it."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if x.stride(1) != 1:
            x = x.contiguous()
        return self._norm(Kind.RMS_NORM, None, x, weight, None, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        if residual.stride(1) != 1:
            self.fall_back()
            return super().add_rms_norm(x, residual, weight, eps)
        return self._norm(Kind.RMS_NORM, x, residual, weight, None, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        if x.stride(1) != 1:
            x = x.contiguous()
        return self._norm(Kind.LAYER_NORM, None, x, weight, bias, eps)

    def add_layer_norm(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        if residual.stride(1) != 1:
            self.fall_back()
            return super().add_layer_norm(x, residual, weight, bias, eps)
        return self._norm(Kind.LAYER_NORM, x, residual, weight, bias, eps)

    def _norm(
        self, kind: Kind, x: Tensor | None, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> Tensor:
        if x is not None and x.stride(1) != 1:
            x = x.contiguous()
        rows, size = residual.shape
        out = self.new(residual, size)
        instruction = Instruction(
            kind=kind,
            **rows_of(out=out, residual=residual, **({} if x is None else {"x": x})),
            weight=weight.data_ptr(),
            bias=address(bias),
            size=size,
            eps=eps,
        )
        self.execute(instruction, rows)
        return out

    def linear(self, linear: Linear, x: Tensor) -> Tensor:
        return self._linear(linear, x, relu=False)

    def linear_relu(self, linear: Linear, x: Tensor) -> Tensor:
        return self._linear(linear, x, relu=True)

    def _linear(self, linear: Linear, x: Tensor, relu: bool) -> Tensor:
        packed = linear.packed
        if packed is None:
            self.fall_back()
            return super().linear_relu(linear, x) if relu else super().linear(linear, x)
        x = packed.aligned(x)
        out = self.new(x, packed.outputs)
        self.execute(packed.instruction(out, x, linear.bias, relu), x.shape[0])
        return out

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        if size % self._lanes or gate_up.stride(1) != 1:
            self.fall_back()
            return super().silu_mul(gate_up)
        out = self.new(gate_up, size)
        instruction = Instruction(
            kind=Kind.SILU_MUL,
            **rows_of(out=out, x=gate_up),
            size=size,
        )
        self.execute(instruction, rows)
        return out

    def write_kv(self, qkv: Tensor, kv: Tensor, batch: RaggedBatch, rope: Tensor | None = None) -> None:
        _, _, kv_heads, block_size, dim = kv.shape
        if not self._fits(kv) or (rope is not None and dim // 2 % self._lanes) or qkv.stride(1) != 1:
            self.fall_back()
            super().write_kv(qkv, kv, batch, rope)
            return
        instruction = Instruction(
            kind=Kind.WRITE_KV,
            **rows_of(out=qkv),
            kv=kv.data_ptr(),
            rope=address(rope),
            size=qkv.shape[1],
            heads=qkv.shape[1] // dim - 2 * kv_heads,
            kv_heads=kv_heads,
            dim=dim,
            block_size=block_size,
            block_stride=kv.stride(0),
        )
        self.execute(instruction, qkv.shape[0], batch)

    def attention(self, q: Tensor, kv: Tensor, batch: RaggedBatch) -> Tensor:
        rows, heads, dim = q.shape
        _, _, kv_heads, block_size, _ = kv.shape
        if not self._fits(kv) or q.stride()[1:] != (dim, 1) or heads // kv_heads > MAX_GROUP:
            self.fall_back()
            return super().attention(q, kv, batch)
        out = self.new(q, heads * dim)
        instruction = Instruction(
            kind=Kind.ATTENTION,
            **rows_of(out=out, x=q),
            kv=kv.data_ptr(),
            size=heads * dim,
            heads=heads,
            kv_heads=kv_heads,
            dim=dim,
            block_size=block_size,
            block_stride=kv.stride(0),
        )
        self.execute(instruction, rows, batch)
        return out

    def forbid(self, logits: Tensor, rows: Tensor, masks: Tensor) -> None:
        if logits.dtype not in LOWEST or logits.stride(1) != 1:
            super().forbid(logits, rows, masks)
            return
        assert masks.shape[1] * 8 >= logits.shape[1], "a mask is too short"
        width, lowest = LOWEST[logits.dtype]
        self.library.forbid(
            *(logits.data_ptr(), logits.stride(0), rows.data_ptr(), len(rows)),
            *(masks.data_ptr(), masks.stride(0), logits.shape[1], width, lowest),
        )

    def _fits(self, kv: Tensor) -> bool:
        """Whether the kernels support this head size and these strides."""
        dim = kv.shape[4]
        return dim <= MAX_HEAD_DIM and dim % self._lanes == 0 and kv[0].is_contiguous()
