"""Divides the prompts whose log probabilities are asked for into passes with few logits each.

The log probability of a prompt's token needs the logits of the position before it. For a long prompt, the
logits of all positions would take gigabytes. So these positions are computed some at a time, before the rest
of the step.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fgengine.execution.scoring import Scores, score
from fgengine.plan import PlanItem
from fgengine.prompt_logprobs import PromptLogprobs
from fgengine.request import Request

POSITIONS = 64
"""Maximum number of positions with logits in a pass."""
SCORED_AT_ONCE = 16
"""Number of rows of logits that are scored together: it bounds the memory of copies in float32."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A part of a step: prompt tokens to compute, and at which of them logits are needed."""

    items: list[PlanItem] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    """The input tokens whose logits are needed, counted over all items."""
    pieces: list[tuple[Request, int, int]] = field(default_factory=list)
    """In the order of ``rows``: a request, its first position with logits, and their number."""

    @property
    def targets(self) -> list[int]:
        """The tokens whose log probabilities the logits give: those that follow the positions."""
        return [
            token
            for request, first, count in self.pieces
            for token in request.tokens[first + 1 : first + 1 + count]
        ]

    @property
    def num_top(self) -> int:
        """The largest number of alternatives that one of the requests asks for."""
        return max(request.params.prompt_logprobs or 0 for request, _, _ in self.pieces)


def divide(items: Sequence[PlanItem]) -> tuple[list[Pass], list[PlanItem]]:
    """Return the passes for prompts with log probabilities, and the items that remain after them.

    A position is scored once: not if its token has a log probability already, because the KV was discarded
    and is computed again.
    """
    passes: list[Pass] = []
    rest: list[PlanItem] = []
    for item in items:
        request, start, num_tokens, blocks, yields_token = item
        collected = request.prompt_logprobs
        end = start + num_tokens
        last = min(end, request.prompt_len - 1)  # the last token's logits give the first output token
        if collected is None or max(start, len(collected)) >= last:
            rest.append(item)
            continue
        first = max(start, len(collected))
        num_computed = start
        while first < last:
            if not passes or len(passes[-1].rows) == POSITIONS:
                passes.append(Pass())
            current = passes[-1]
            before = sum(other.num_tokens for other in current.items)
            stop = min(last, first + POSITIONS - len(current.rows))
            current.rows.extend(range(before + first - num_computed, before + stop - num_computed))
            current.items.append(PlanItem(request, num_computed, stop - num_computed, blocks, False))
            current.pieces.append((request, first, stop - first))
            num_computed = first = stop
        if num_computed < end:
            rest.append(PlanItem(request, num_computed, end - num_computed, blocks, yields_token))
    return passes, rest


def scores_of(logits: Tensor, targets: Tensor, num_top: int) -> Scores:
    """Score a pass: logits [R, vocab_size] and the tokens that follow, [R] int64."""
    groups = zip(torch.split(logits, SCORED_AT_ONCE), torch.split(targets, SCORED_AT_ONCE), strict=True)
    parts = [score(rows, tokens, num_top) for rows, tokens in groups]
    return Scores(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def pieces_of(scored: Sequence[tuple[Pass, Scores]]) -> dict[str, PromptLogprobs]:
    """Return one piece for each request of the passes, by request id. The scores must be on the host."""
    found: dict[str, PromptLogprobs] = {}
    for one, scores in scored:
        row = 0
        for request, first, count in one.pieces:
            rows = slice(row, row + count)
            width = min(request.params.prompt_logprobs or 0, scores.top_tokens.shape[1])
            piece = PromptLogprobs(
                first,
                width,
                _column("f", scores.logprobs[rows]),
                _column("i", scores.top_tokens[rows, :width].int()),
                _column("f", scores.top_logprobs[rows, :width]),
            )
            if request.id in found:
                found[request.id].extend(piece)
            else:
                found[request.id] = piece
            row += count
    return found


def _column(code: str, values: Tensor) -> array:  # type: ignore[type-arg]
    return array(code, values.contiguous().numpy().tobytes())
