"""The model's operations in plain torch: correct on any device. Faster subclasses override them one by one.

Shapes: T new tokens of B requests (see RaggedBatch). ``kv`` is one layer of a pool, [num_blocks, 2,
num_kv_heads, block_size, head_dim]: keys at index 0 of the second axis, values at index 1. It is a view; its
blocks are further apart than one layer's size.
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
"""Lower bound of temperatures: the inverse of this one is still a finite float32."""


class TorchOps:
    """The operations of a model's forward pass, and sampling. Tensors have the model's dtype."""

    name = "torch"

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Look up embeddings: tokens [T] int64, table [vocab_size, hidden] -> [T, hidden]."""
        return F.embedding(tokens, table)

    def add_positions(self, x: Tensor, table: Tensor, batch: RaggedBatch) -> Tensor:
        """Add each token's position embedding to x [T, hidden] in place; table [positions, hidden]."""
        return x.add_(F.embedding(batch.positions, table))

    def pick(self, x: Tensor, rows: Tensor) -> Tensor:
        """Select ``rows`` [R] int64 of x: [T, hidden] -> [R, hidden].

        These rows yield a token. The operations after this one compute no other rows.
        """
        return x[rows]

    def linear(self, linear: Linear, x: Tensor) -> Tensor:
        """Apply a linear layer: [T, inputs] -> [T, outputs]."""
        out: Tensor = linear(x)
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Apply RMSNorm, in float32: [T, hidden] -> [T, hidden]."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * weight.float()).to(x.dtype)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Add x to ``residual`` in place and return the RMSNorm of the sum. All are [T, hidden]."""
        residual.add_(x)
        return self.rms_norm(residual, weight, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Apply LayerNorm, in float32: [T, hidden] -> [T, hidden]."""
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    def add_layer_norm(self, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Add x to ``residual`` in place and return the LayerNorm of the sum. All are [T, hidden]."""
        residual.add_(x)
        return self.layer_norm(residual, weight, bias, eps)

    def linear_relu(self, linear: Linear, x: Tensor) -> Tensor:
        """Return relu(linear(x)): [T, inputs] -> [T, outputs]."""
        out: Tensor = linear(x)
        return out.relu_()

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up: [T, 2 * n] (gate, then up) -> [T, n]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def write_kv(self, qkv: Tensor, kv: Tensor, batch: RaggedBatch, rope: Tensor | None = None) -> None:
        """Store the keys and values of the new tokens in ``kv``.

        Args:
            qkv: [T, (heads + 2 * kv_heads) * head_dim]: queries, keys, values of each token.
            rope: [max_position, head_dim] float32, cosines then sines (see ``rope_table``). If given, queries
                and keys are first rotated in place.
        """
        _, _, kv_heads, block_size, head_dim = kv.shape
        heads = qkv.view(qkv.shape[0], -1, head_dim)
        if rope is not None:
            rotated = heads[:, :-kv_heads]
            cos, sin = rope[batch.positions].unsqueeze(1).chunk(2, dim=-1)
            low, high = rotated.float().chunk(2, dim=-1)
            rotated.copy_(torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1))
        block, place = batch.slots // block_size, batch.slots % block_size
        kv[block, 0, :, place] = heads[:, -2 * kv_heads : -kv_heads]
        kv[block, 1, :, place] = heads[:, -kv_heads:]

    def attention(self, q: Tensor, kv: Tensor, batch: RaggedBatch) -> Tensor:
        """Compute causal attention of each new token over its own sequence; the scale is head_dim ** -0.5.

        Args:
            q: [T, heads, head_dim]; rows may be strided.
            kv: already holds the keys and values of the new tokens.

        Returns:
            [T, heads * head_dim], contiguous.
        """
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        decodes = [b for b, n in enumerate(batch.query_lens) if n == 1]
        if decodes:
            rows = torch.tensor(decodes, device=q.device)
            at = batch.query_starts[rows].long()
            num_blocks = -(-max(batch.contexts[b] for b in decodes) // kv.shape[3])
            tables = batch.block_tables[rows, :num_blocks]
            out[at] = _decode_attention(q[at], kv, tables, batch.context_lens[rows])
        first = 0
        for b, n in enumerate(batch.query_lens):
            if n > 1:
                span = slice(first, first + n)
                out[span] = _prefill_attention(q[span], kv, batch.block_tables[b], batch.contexts[b])
            first += n
        return out.flatten(1)

    def sample(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Sample one token for each row, by inversion of the cumulative distribution in vocabulary order.

        Args:
            logits: [R, vocab_size]; the logits of a row are contiguous.
            rows: [R, 4] float64, on the same device: temperature (0: take the largest logit), top-k (0: off),
                top-p (1: off), and the draw, a number in [0, 1). Equal logits rank by their index in the
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
    # Subtract the largest logit first, so that even the smallest temperature does not overflow.
    mass = ((wide - wide.amax(-1, keepdim=True)) * scale).exp()
    vocab = logits.shape[1]
    top_k = torch.where(top_k > 0, top_k, vocab)
    cut = ((top_k < vocab) | (top_p < 1.0)).squeeze(1).nonzero().squeeze(1)
    if len(cut):
        mass[cut] = _cut(wide[cut], mass[cut], top_k[cut], top_p[cut])
    cumulative = mass.cumsum(-1, dtype=torch.float64)
    picked = torch.searchsorted(cumulative, draw * cumulative[:, -1:], right=True)
    # Rounding may put the draw at the very end: then take the last token with a mass above 0.
    last = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(picked, last).squeeze(1)


def _cut(logits: Tensor, mass: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Set the masses outside top-k and top-p to 0.

    Of the k largest, this leaves the smallest set whose mass reaches ``top_p`` of their total.
    Shapes: logits and mass [R, vocab_size], top_k and top_p [R, 1].
    """
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    ranked = mass.gather(1, order)
    ranked.masked_fill_(torch.arange(logits.shape[1], device=logits.device) >= top_k, 0.0)
    reached = ranked.cumsum(-1, dtype=torch.float64)
    # A token remains if the tokens ranked before it have not reached top_p.
    ranked.masked_fill_(reached - ranked >= top_p * reached[:, -1:], 0.0)
    return torch.zeros_like(mass).scatter_(1, order, ranked)


def _decode_attention(q: Tensor, kv: Tensor, tables: Tensor, context_lens: Tensor) -> Tensor:
    """Compute attention of one query per request, for all requests at once.

    q and the result are [B, heads, head_dim]; tables [B, maximum blocks]; context_lens [B].
    """
    requests, _, head_dim = q.shape
    kv_heads = kv.shape[2]
    gathered = kv[tables].permute(2, 0, 3, 1, 4, 5).flatten(3, 4)
    keys, values = gathered[0].float(), gathered[1].float()
    outside = torch.arange(keys.shape[2], device=q.device) >= context_lens.unsqueeze(1)
    # Memory after the context may hold anything, even NaN, and 0 * NaN would make the sum NaN.
    values = values.masked_fill(outside[:, None, :, None], 0.0)
    grouped = q.float().view(requests, kv_heads, -1, head_dim) * head_dim**-0.5
    scores = (grouped @ keys.mT).masked_fill(outside[:, None, None, :], -torch.inf)
    out: Tensor = scores.softmax(-1) @ values
    return out.view_as(q).to(q.dtype)


def _prefill_attention(q: Tensor, kv: Tensor, table: Tensor, context: int) -> Tensor:
    """Compute attention of the n queries of one request; its keys and values are gathered first.

    q and the result are [n, heads, head_dim]; table [maximum blocks]; context in tokens.
    """
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
