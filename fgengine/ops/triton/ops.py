"""The operations on a GPU: Triton kernels if they support the sizes and strides, else plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from fgengine.ops.batch import RaggedBatch
from fgengine.ops.reference import COLDEST, TorchOps
from fgengine.ops.triton import activations, norms, rope_kv, sampling
from fgengine.ops.triton.decode_attention import decode_attention
from fgengine.ops.triton.prefill_attention import prefill_attention

if TYPE_CHECKING:
    from fgengine.model.layers import Linear


MAX_HEAD_DIM = 256
MAX_GROUP = 64


def fits(q: Tensor, kv: Tensor) -> bool:
    """Whether the attention kernels support these sizes and strides (see ``TorchOps.attention``)."""
    _, heads, head_dim = q.shape
    dense = q.stride()[1:] == (head_dim, 1) and kv[0].is_contiguous()
    return dense and head_dim <= MAX_HEAD_DIM and heads // kv.shape[2] <= MAX_GROUP


def attention(q: Tensor, kv: Tensor, batch: RaggedBatch) -> Tensor:
    """Compute ``TorchOps.attention`` with Triton kernels; the arguments must satisfy ``fits``.

    A CUDA graph can capture the launches. Its replays use the current ``context_lens`` and ``block_tables``
    on the device.
    """
    out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
    if batch.num_decodes:
        decode_attention(q, kv, batch, out)
    if batch.longest_query:
        prefill_attention(q, kv, batch, out)
    return out


class TritonOps(TorchOps):
    """Operations on tensors of one CUDA device (or of the CPU, in Triton's interpreter), as in TorchOps.

    No operation waits for the GPU, so that a decode step can be captured as a CUDA graph.
    """

    name = "triton kernels"

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norms.norm(x, None, weight, None, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        return norms.norm(x, residual, weight, None, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return norms.norm(x, None, weight, bias, eps)

    def add_layer_norm(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return norms.norm(x, residual, weight, bias, eps)

    def linear_relu(self, linear: Linear, x: Tensor) -> Tensor:
        assert linear.bias is not None
        return activations.bias_relu_(F.linear(x, linear.weight), linear.bias)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        return activations.silu_mul(gate_up)

    def write_kv(self, qkv: Tensor, kv: Tensor, batch: RaggedBatch, rope: Tensor | None = None) -> None:
        rope_kv.write_kv(qkv, kv, batch, rope)

    def attention(self, q: Tensor, kv: Tensor, batch: RaggedBatch) -> Tensor:
        if not fits(q, kv):
            return super().attention(q, kv, batch)
        return attention(q, kv, batch)

    def sample(self, logits: Tensor, rows: Tensor) -> Tensor:
        return sampling.sample(logits, rows, COLDEST)
