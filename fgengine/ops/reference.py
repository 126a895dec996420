"""The model's operations in plain torch: correct on any device. Faster subclasses override them one by one.

Shapes: T new tokens of B requests (see RaggedBatch). ``kv`` is one layer of a pool, [num_blocks, 2,
num_kv_heads, block_size, head_dim]: keys at index 0 of the second axis, values at index 1. It is a view; its
blocks are further apart than one layer's size.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fgengine.ops.batch import RaggedBatch, place

if TYPE_CHECKING:
    from fgengine.model.layers import Linear

COLDEST = 1e-30
"""Lower bound of temperatures: the inverse of this one is still a finite float32."""
OF_BITS = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, 0.0, -np.inf).astype(np.float32)
"""[256, 8]: for each byte of a mask, what is added to the logits of its eight tokens."""
LOG2_E = math.log2(math.e)
"""exp(x) is exp2(x * LOG2_E). On a CPU, torch's exp takes up to 100 times as long where the result is 0."""
SMALLEST = -126.0
"""Exponent of 2 below which a mass is 0. Such numbers are denormal, and slow on a CPU."""
PART = 256
"""Tokens of the vocabulary whose masses are summed before the one that is drawn is looked for among them."""


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

    def forbid(self, logits: Tensor, rows: Tensor, masks: Tensor) -> None:
        """Set logits to -infinity where a bit of the row's mask is 0, in place.

        Args:
            logits: [R, vocab_size].
            rows: [M] int64: the rows that have a mask.
            masks: [M, at least vocab_size / 8] uint8: bit ``token % 8`` of byte ``token // 8``.
        """
        of_bits = place(OF_BITS, logits.device).to(logits.dtype)
        added = of_bits.index_select(0, masks.flatten().int())
        logits.index_add_(0, rows, added.view(len(rows), -1)[:, : logits.shape[1]])

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
        drawn = rows[:, 0].nonzero().squeeze(1)
        if len(drawn) == len(rows):
            return _draw(logits, rows)
        tokens = logits.max(-1).indices
        if len(drawn):
            tokens[drawn] = _draw(logits[drawn], rows[drawn])
        return tokens


def _draw(logits: Tensor, rows: Tensor) -> Tensor:
    temperature, top_k, top_p, draw = torch.split(rows, 1, dim=1)
    scale = temperature.clamp(min=COLDEST).reciprocal()
    # Subtract the largest logit first, so that even the smallest temperature does not overflow.
    mass = logits.to(torch.float32, copy=True)
    mass.sub_(mass.amax(-1, keepdim=True)).mul_((scale * LOG2_E).float())
    torch.threshold_(mass, SMALLEST, -math.inf).exp2_()
    vocab = logits.shape[1]
    cut = (((top_k > 0) & (top_k < vocab)) | (top_p < 1.0)).squeeze(1).nonzero().squeeze(1)
    for row in cut.tolist():
        _cut(mass[row], logits[row], int(top_k[row]) or vocab, float(top_p[row]))
    # Find the part of the vocabulary that has the draw first: sums take a fraction of the time of cumsum.
    if vocab % PART:
        mass = F.pad(mass, (0, -vocab % PART))
    parts = mass.view(len(mass), -1, PART)
    sums = parts.sum(-1).double()
    upto = sums.cumsum(-1)
    wanted = draw * upto[:, -1:]
    part = _first_above(upto, wanted)
    wanted = wanted - (upto.gather(1, part) - sums.gather(1, part))
    inside = parts[torch.arange(len(parts), device=part.device), part.squeeze(1)].double().cumsum(-1)
    return (part * PART + _first_above(inside, wanted)).squeeze(1)


def _first_above(cumulative: Tensor, wanted: Tensor) -> Tensor:
    """Return the first place of each row where the cumulative masses exceed ``wanted``.

    Shapes: [R, n] and [R, 1] -> [R, 1]. Rounding may put ``wanted`` outside the masses: then it is the first
    or the last place with one above 0.
    """
    first = torch.searchsorted(cumulative, wanted.clamp(min=0.0), right=True)
    last = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    return torch.minimum(first, last)


def _cut(mass: Tensor, logits: Tensor, top_k: int, top_p: float) -> None:
    """Set the masses of one row outside top-k and top-p to 0, in place.

    Of the k largest, this leaves the smallest set whose mass reaches ``top_p`` of their total.
    """
    # Only tokens that may remain are sorted: sorting the whole vocabulary takes longer than a step.
    if top_k < len(mass):
        possible = (logits >= logits.topk(top_k).values[-1]) & (mass > 0.0)
    else:  # all tokens with a smaller mass together have less than half of what top-p leaves out
        possible = mass > mass.sum() * ((1.0 - top_p) / 2 / len(mass))
    places = possible.nonzero().squeeze(1)
    ranked = places[logits[places].sort(descending=True, stable=True).indices[:top_k]]
    masses = mass[ranked]
    reached = masses.cumsum(0, dtype=torch.float64)
    total = reached[-1] if top_k < len(mass) else mass.sum(dtype=torch.float64)
    # A token remains if the tokens ranked before it have not reached top_p.
    remain = reached - masses < top_p * total
    mass.zero_()[ranked[remain]] = masses[remain]


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
