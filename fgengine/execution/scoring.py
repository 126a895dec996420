"""Log probabilities of tokens, and the most probable tokens in their places."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fgengine.execution.timing import to_host
from fgengine.prompt_logprobs import TopTokens

BLOCK = 64
"""Logits in a block, when the largest are searched."""


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
    logprobs = logits.float().log_softmax(-1)
    top = _largest(logits, min(count, logits.shape[1]))
    return Scores(logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1), top, logprobs.gather(1, top))


def _largest(logits: Tensor, count: int) -> Tensor:
    """Return the indices [R, count] of each row's largest logits [R, vocab_size], the largest first.

    Of equal logits, those with smaller indices come first. ``topk`` promises no order of equal values, and
    in bfloat16 many are equal; so it could choose other tokens in another batch.

    A row is divided into blocks, and the blocks are ranked by their largest logit. The largest logits are all
    in the first ``count`` blocks: a logit in a later block has at least one before it in each of those. So
    only small arrays are sorted, which takes a hundredth of the time.
    """
    rows, vocab = logits.shape
    if count == 0:
        return torch.empty(rows, 0, dtype=torch.int64, device=logits.device)
    blocks = F.pad(logits.float(), (0, -vocab % BLOCK), value=-math.inf).view(rows, -1, BLOCK)
    ranked = blocks.amax(-1).sort(stable=True, dim=-1, descending=True).indices
    first = ranked[:, :count].sort(-1).values  # in the order of the vocabulary again
    candidates = blocks.gather(1, first.unsqueeze(-1).expand(-1, -1, BLOCK)).flatten(1)
    order = candidates.sort(stable=True, dim=-1, descending=True).indices[:, :count]
    return first.gather(1, order // BLOCK) * BLOCK + order % BLOCK
