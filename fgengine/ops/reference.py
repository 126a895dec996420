"""The operations in plain torch: always right, on any device. Faster makers override them one by one.

Shapes: T new tokens of B requests (see RaggedBatch); ``kv`` is one layer of a pool,
``[num_blocks, 2, num_kv_heads, block_size, head_dim]``, a view with its own stride between blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from fgengine.ops.batch import RaggedBatch

if TYPE_CHECKING:
    from fgengine.model.layers import Linear

COLDEST = 1e-30
"""Temperatures below it count as it: its inverse is still a float32."""


class TorchOps:
    """Everything a model does between its matrix multiplications, and the choice of tokens after it."""

    name = "torch"

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        """tokens [T] int64, table [vocab_size, hidden] -> [T, hidden]."""
        return F.embedding(tokens, table)

    def add_positions(self, x: Tensor, table: Tensor, batch: RaggedBatch) -> Tensor:
        """Adds to x [T, hidden], in place, each token's row of the table of positions."""
        return x.add_(F.embedding(batch.positions, table))

    def pick(self, x: Tensor, rows: Tensor) -> Tensor:
        """[T, hidden] -> [R, hidden]: the rows that yield a token; no others are computed from here on."""
        return x[rows]

    def linear(self, linear: Linear, x: Tensor) -> Tensor:
        """[T, inputs] -> [T, outputs]."""
        out: Tensor = linear(x)
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """[T, hidden] -> [T, hidden]; computed in float32."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * weight.float()).to(x.dtype)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Adds x to ``residual`` in place and returns the norm of the sum."""
        residual.add_(x)
        return self.rms_norm(residual, weight, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """[T, hidden] -> [T, hidden]; computed in float32."""
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def add_layer_norm(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Adds x to ``residual`` in place and returns the norm of the sum."""
        residual.add_(x)
        return self.layer_norm(residual, weight, bias, eps)

    def linear_relu(self, linear: Linear, x: Tensor) -> Tensor:
        """[T, inputs] -> [T, outputs]: relu(linear(x))."""
        out: Tensor = linear(x)
        return out.relu_()

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """[T, 2 * n], gate then up -> [T, n]: silu(gate) * up."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def write_kv(self, qkv: Tensor, kv: Tensor, batch: RaggedBatch, rope: Tensor | None = None) -> None:
        """Stores the keys and values of the new tokens.

        Args:
            qkv: [T, (heads + 2 * kv_heads) * head_dim]: queries, keys, values of each token.
            rope: [max_position, head_dim], cosines then sines, float32; queries and keys are first
                rotated by it in place.
        """
        _, _, kv_heads, block_size, head_dim = kv.shape
        heads = qkv.view(qkv.shape[0], -1, head_dim)
        if rope is not None:
            turned = heads[:, :-kv_heads]
            cos, sin = rope[batch.positions].unsqueeze(1).chunk(2, dim=-1)
            low, high = turned.float().chunk(2, dim=-1)
            turned.copy_(torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1))
        block, place = batch.slots // block_size, batch.slots % block_size
        kv[block, 0, :, place] = heads[:, -2 * kv_heads : -kv_heads]
        kv[block, 1, :, place] = heads[:, -kv_heads:]

    def attention(self, q: Tensor, kv: Tensor, batch: RaggedBatch) -> Tensor:
        """Each new token attends to its own sequence up to itself; scaled by head_dim ** -0.5.

        Args:
            q: [T, heads, head_dim], rows may be strided; the new keys and values are in ``kv`` already.

        Returns:
            [T, heads * head_dim], contiguous.
        """
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        decodes = [b for b, n in enumerate(batch.query_lens) if n == 1]
        if decodes:
            rows = torch.tensor(decodes, device=q.device)
            at = batch.query_starts[rows].long()
            most = -(-max(batch.contexts[b] for b in decodes) // kv.shape[3])
            tables = batch.block_tables[rows, :most]
            out[at] = _decode_attention(q[at], kv, tables, batch.context_lens[rows])
        first = 0
        for b, n in enumerate(batch.query_lens):
            if n > 1:
                span = slice(first, first + n)
                out[span] = _prefill_attention(q[span], kv, batch.block_tables[b], batch.contexts[b])
            first += n
        return out.flatten(1)

    def sample(self, logits: Tensor, rows: Tensor) -> Tensor:
        """One token a row, by the inverse of the cumulative distribution in the vocabulary's order.

        Args:
            logits: [R, vocab_size]; a row's logits lie side by side.
            rows: [R, 4] float64, on the same device: temperature (0: the largest logit), top-k (0: off),
                top-p (1: off), and the draw, a number in [0, 1). Equal logits rank by their place in the
                vocabulary.

        Returns:
            [R] int64.
        """
        tokens = logits.max(-1).indices
        drawn = rows[:, 0].nonzero().squeeze(1)
        if len(drawn):
            tokens[drawn] = _draw(logits[drawn], rows[drawn])
        return tokens


def _draw(logits: Tensor, rows: Tensor) -> Tensor:
    temperature, top_k, top_p, draw = torch.split(rows, 1, dim=1)
    scale = temperature.clamp(min=COLDEST).reciprocal().float()
    wide = logits.float()
    # The largest is taken off first, so that no temperature is small enough to overflow.
    mass = ((wide - wide.amax(-1, keepdim=True)) * scale).exp()
    vocab = logits.shape[1]
    top_k = torch.where(top_k > 0, top_k, vocab)
    cut = ((top_k < vocab) | (top_p < 1.0)).squeeze(1).nonzero().squeeze(1)
    if len(cut):
        mass[cut] = _cut(wide[cut], mass[cut], top_k[cut], top_p[cut])
    cumulative = mass.cumsum(-1, dtype=torch.float64)
    picked = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True)
    # Rounding may leave the draw at the very end: the last token with any mass is meant.
    last = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(picked, last).squeeze(1)


def _cut(logits: Tensor, mass: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The masses of the k largest and, among those, of the smallest set that reaches top_p of them."""
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    ranked = mass.gather(1, order)
    ranked.masked_fill_(torch.arange(logits.shape[1], device=logits.device) >= top_k, 0.0)
    reached = ranked.cumsum(-1, dtype=torch.float64)
    # A token stays while those before it have not reached top_p.
    ranked.masked_fill_(reached - ranked >= top_p * reached[:, -1:], 0.0)
    return torch.zeros_like(mass).scatter_(1, order, ranked)


def _decode_attention(q: Tensor, kv: Tensor, tables: Tensor, context_lens: Tensor) -> Tensor:
    """One query a request, all requests at once: [B, heads, head_dim]."""
    requests, _, head_dim = q.shape
    kv_heads = kv.shape[2]
    gathered = kv[tables].permute(2, 0, 3, 1, 4, 5).flatten(3, 4)
    keys, values = gathered[0].float(), gathered[1].float()
    outside = torch.arange(keys.shape[2], device=q.device) >= context_lens.unsqueeze(1)
    # What stands behind the context is anything, even NaN: it must not reach the sum as 0 * NaN.
    values = values.masked_fill(outside[:, None, :, None], 0.0)
    grouped = q.float().view(requests, kv_heads, -1, head_dim) * head_dim**-0.5
    scores = (grouped @ keys.mT).masked_fill(outside[:, None, None, :], -torch.inf)
    out: Tensor = scores.softmax(-1) @ values
    return out.view_as(q).to(q.dtype)


def _prefill_attention(q: Tensor, kv: Tensor, table: Tensor, context: int) -> Tensor:
    """Many queries of one request: [n, heads, head_dim]; its keys and values are gathered first."""
    new, heads, _ = q.shape
    block_size = kv.shape[3]
    gathered = kv[table[: -(-context // block_size)]].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :context]
    keys, values = gathered.repeat_interleave(heads // kv.shape[2], dim=1).unsqueeze(1)
    mask = None
    if new < context:
        mask = torch.ones(new, context, dtype=torch.bool, device=q.device).tril(context - new)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0), keys, values, attn_mask=mask, is_causal=mask is None
    )
    return out.squeeze(0).transpose(0, 1)
