"""Log probabilities of tokens, and the most probable tokens in their places."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fgengine.execution.timing import to_host
from fgengine.prompt_logprobs import TopTokens


class Scores(NamedTuple):
    """Natural log probabilities of R tokens, each with the K most probable tokens in its place."""

    logprobs: Tensor
    """[R] float32."""
    top_tokens: Tensor
    """[R, K] int64, the most probable first. Of equally probable ones, the smaller id is first."""
    top_logprobs: Tensor
    """[R, K] float32."""

    def to_host(self) -> Scores:
        """Start a copy to the host; see ``timing.to_host``."""
        return Scores(*map(to_host, self))

    def top(self, row: int, count: int) -> TopTokens:
        """Return the ``count`` most probable tokens of a row."""
        tokens, logprobs = self.top_tokens[row, :count].tolist(), self.top_logprobs[row, :count].tolist()
        return list(zip(tokens, logprobs, strict=True))


def score(logits: Tensor, tokens: Tensor, count: int = 0) -> Scores:
    """Return the log probabilities of ``tokens`` [R] int64, and of the ``count`` most probable tokens.

    logits: [R, vocab_size], as the model computed them. Never waits for the GPU. If the vocabulary is smaller
    than ``count``, all its tokens are returned.
    """
    wide = logits.float()
    total = wide.logsumexp(-1, keepdim=True)
    top = _largest(wide, min(count, logits.shape[1]))
    return Scores(
        (wide.gather(1, tokens.unsqueeze(1)) - total).squeeze(1),
        top,
        wide.gather(1, top) - total,
    )


def _largest(logits: Tensor, count: int) -> Tensor:
    """Return the indices [R, count] of each row's largest logits [R, vocab_size], the largest first.

    Of equal logits, those with smaller indices come first. ``topk`` promises no order of equal values, and
    in bfloat16 many are equal; it could return other tokens in another batch.
    """
    vocab = logits.shape[1]
    if count == 0:
        return torch.empty(logits.shape[0], 0, dtype=torch.int64, device=logits.device)
    least = logits.topk(count).values[:, -1:]
    # Give the logits above the least of the largest, and those equal to it, ranks that all differ. They are
    # integers below 2^24, which float32 holds exactly.
    ranks = torch.arange(vocab, 0, -1, dtype=torch.float32, device=logits.device)
    ranks = torch.where(logits > least, ranks + vocab, torch.where(logits == least, ranks, 0.0))
    chosen = ranks.topk(count).indices.sort(-1).values
    order = logits.gather(1, chosen).sort(stable=True, dim=-1, descending=True).indices
    return chosen.gather(1, order)
