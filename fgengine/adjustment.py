"""What a request changes in its logits before a token is sampled, with the tokens counted so far. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fgengine.matching import Matcher
    from fgengine.request import SamplingParams

ALWAYS = 2**31
"""More output tokens than any request has."""


class TokenCounts:
    """The different tokens of a request, and how often it generated each.

    The counts follow from the request's tokens alone. So they are the same after its KV was discarded, and
    each token is counted once.
    """

    def __init__(self, prompt_len: int, *, with_prompt: bool) -> None:
        """``with_prompt``: whether the prompt's tokens are listed too; their count is 0."""
        self.tokens = array("q")
        """The different tokens, in the order of their first appearance."""
        self.counts = array("q")
        """How often each was generated."""
        self._places: dict[int, int] = {}
        self._prompt_len = prompt_len
        self._counted = 0 if with_prompt else prompt_len

    def count(self, tokens: Sequence[int], end: int) -> None:
        """Count those of the request's first ``end`` tokens that are not counted yet."""
        for at in range(self._counted, end):
            place = self._places.setdefault(tokens[at], len(self.tokens))
            if place == len(self.tokens):
                self.tokens.append(tokens[at])
                self.counts.append(0)
            if at >= self._prompt_len:
                self.counts[place] += 1
        self._counted = max(self._counted, end)


class Adjustment:
    """How one request's logits change: biases, penalties, and tokens that cannot be chosen."""

    def __init__(self, params: SamplingParams, prompt_len: int) -> None:
        self.params = params
        self.until = ALWAYS if params.changes_every_token else params.min_tokens
        """The number of output tokens, from the first one, for which the logits change."""
        self.only_forbids = not (params.logit_bias or params.has_penalties or params.min_p)
        """Whether all changed logits become -inf, so that the model's own format can hold the others."""
        self.bias_tokens = array("q", [token for token, _ in params.logit_bias])
        self.biases = array("d", [bias for _, bias in params.logit_bias])
        self.matcher: Matcher | None = None
        """Set by the engine if the request has a grammar."""
        self.counts: TokenCounts | None = None
        """None: the request has no penalties."""
        if params.has_penalties:
            self.counts = TokenCounts(prompt_len, with_prompt=params.repetition_penalty != 1.0)
