"""Logits to tokens. A draw depends on the request's seed, its output position and its logits only.

So a request gives the same tokens alone and in any batch, and again after it was evicted and recomputed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fgengine.request import Request, SamplingParams


def seed_of(request: Request, engine_seed: int) -> int:
    """The seed it asked for, or one made of its id and the engine's seed; below 2^64."""
    if request.params.seed is not None:
        return request.params.seed
    digest = hashlib.blake2b(f"{engine_seed}:{request.id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that a seed gives at an output position: one draw of a counter-based generator."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def sample(
    logits: Tensor, requests: Sequence[Request], positions: Sequence[int], engine_seed: int = 0
) -> Tensor:
    """The next token of each request.

    Args:
        logits: [R, vocab_size], row r for ``requests[r]``.
        positions: which of its output tokens each is, from 0.

    Returns:
        [R] int64, on the logits' device.
    """
    if all(request.params.greedy for request in requests):
        return logits.max(-1).indices  # as argmax, but four times as fast on a CPU in bfloat16
    rows: dict[str, list[int]] = {"greedy": [], "whole": [], "cut": []}
    for row, request in enumerate(requests):
        params = request.params
        # A top-k as wide as the vocabulary cuts nothing.
        cut = params.top_p < 1.0 or 0 < params.top_k < logits.shape[-1]
        rows["greedy" if params.greedy else "cut" if cut else "whole"].append(row)
    tokens = torch.empty(len(requests), dtype=torch.int64, device=logits.device)
    for kind, chosen in rows.items():
        if chosen:
            at = torch.tensor(chosen, device=logits.device)
            if kind == "greedy":
                tokens[at] = logits[at].argmax(-1)
            else:
                draws = [uniform(seed_of(requests[row], engine_seed), positions[row]) for row in chosen]
                drawn = _draw(logits[at], [requests[row].params for row in chosen], draws, kind == "cut")
                tokens[at] = drawn
    return tokens


def logprobs_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """[R]: natural-log probability of each chosen token, before temperature."""
    return logits.float().log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)


def _draw(logits: Tensor, params: Sequence[SamplingParams], draws: Sequence[float], cut: bool) -> Tensor:
    """Inverse of the cumulative distribution at each request's own uniform number in [0, 1)."""

    def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device).unsqueeze(1)

    wide = logits.float()
    # The largest is taken off first, so that no temperature is small enough to overflow.
    wide = (wide - wide.amax(-1, keepdim=True)) / column([p.temperature for p in params])
    order = None
    if cut:
        wide, order = wide.sort(dim=-1, descending=True, stable=True)
        vocabulary = logits.shape[-1]
        rank = torch.arange(vocabulary, device=logits.device)
        wide = wide.masked_fill(rank >= column([p.top_k or vocabulary for p in params]), -torch.inf)
    mass = wide.softmax(-1)
    if cut:
        # The smallest set that reaches top_p: a token stays while those before it have not reached it.
        before = mass.cumsum(-1, dtype=torch.float64) - mass
        mass = mass.masked_fill(before >= column([p.top_p for p in params]), 0.0)
    cumulative = mass.cumsum(-1, dtype=torch.float64)
    picked = torch.searchsorted(cumulative, column(draws, torch.float64) * cumulative[:, -1:], right=True)
    # Rounding may leave the draw at the very end: the last token with any mass is meant.
    last = (cumulative < cumulative[:, -1:]).sum(-1, keepdim=True)
    picked = torch.minimum(picked, last)
    if order is not None:
        picked = order.gather(1, picked)
    return picked.squeeze(1)
