"""Attention over a paged context: requests with one new token in front, the others behind them."""

from __future__ import annotations

from torch import Tensor

from fgengine.ops.batch import RaggedBatch
from fgengine.ops.triton.decode_attention import decode_attention
from fgengine.ops.triton.prefill_attention import prefill_attention

MAX_HEAD_DIM = 256
MAX_GROUP = 64


def fits(q: Tensor, kv: Tensor) -> bool:
    """Whether the kernels know these sizes and strides."""
    _, heads, head_dim = q.shape
    dense = q.stride()[1:] == (head_dim, 1) and kv[0].is_contiguous()
    return dense and head_dim <= MAX_HEAD_DIM and heads // kv.shape[2] <= MAX_GROUP


def attention(q: Tensor, kv: Tensor, batch: RaggedBatch) -> Tensor:
    """As ``TorchOps.attention``, where ``fits``; can be captured in a CUDA graph, whose replays then follow
    ``context_lens`` and ``block_tables`` on the device."""
    out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
    if batch.num_decodes:
        decode_attention(q, kv, batch, out)
    if batch.longest_query:
        prefill_attention(q, kv, batch, out)
    return out
