"""Log probabilities of a prompt's tokens, in compact columns. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

TopTokens = list[tuple[int, float]]
"""Tokens with their log probabilities, the most probable first."""


class PromptLogprobs:
    """The log probabilities of prompt tokens that follow each other, each given the tokens before it.

    A request collects them while its prompt is computed; a step adds a piece. The prompt's first token has no
    log probability, so entry i belongs to the token at position i + 1. A prompt of 8,192 tokens with 20
    alternatives takes 1.3 MB here; as tuples it would take about 20 MB.
    """

    def __init__(
        self,
        first: int = 0,
        width: int = 0,
        logprobs: array[float] | None = None,
        top_tokens: array[int] | None = None,
        top_logprobs: array[float] | None = None,
    ) -> None:
        """Create a piece that begins at entry ``first``; without columns, an empty one.

        Args:
            width: number of alternatives of each token.
            logprobs: one for each token.
            top_tokens, top_logprobs: ``width`` for each token, the most probable first.
        """
        self.first = first
        self.width = width
        self._logprobs = array("f") if logprobs is None else logprobs
        self._top_tokens = array("i") if top_tokens is None else top_tokens
        self._top_logprobs = array("f") if top_logprobs is None else top_logprobs

    def __len__(self) -> int:
        return len(self._logprobs)

    def extend(self, piece: PromptLogprobs) -> None:
        """Add the entries of a piece that are not here yet.

        Raises RuntimeError if there is a gap between the two.
        """
        known = self.first + len(self) - piece.first
        if known < 0:
            raise RuntimeError(f"{-known} log probabilities of the prompt are missing before {piece.first}")
        if not self._logprobs:
            self.width = piece.width
        self._logprobs += piece._logprobs[known:]
        self._top_tokens += piece._top_tokens[known * piece.width :]
        self._top_logprobs += piece._top_logprobs[known * piece.width :]

    def entries(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[float, TopTokens]]:
        """Yield the log probability and the alternatives of the entries ``start`` to ``stop`` - 1."""
        width = self.width
        for at in range(start, len(self) if stop is None else min(stop, len(self))):
            span = slice(at * width, (at + 1) * width)
            top = list(zip(self._top_tokens[span], self._top_logprobs[span], strict=True))
            yield self._logprobs[at], top
