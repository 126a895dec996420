"""Sums up what a server reports about the tokens of its answers, to check that it did the work asked for."""

from __future__ import annotations

from dataclasses import dataclass

from fgbench.workload.workload import RequestSpec

TEXT_TOLERANCE = 1
"""Number of tokens by which the count of a text may differ: many tokenizers add one at the beginning."""


@dataclass(slots=True)
class UsageTally:
    """Sums over the complete answers of a load."""

    texts: int = 0
    """Answers to prompts that were sent as text, not as token ids."""
    without_usage: int = 0
    """Answers that do not report the tokens of their prompt."""
    miscounted: int = 0
    """Answers that report another number of prompt tokens than was sent."""
    sent_tokens: int = 0
    """Prompt tokens sent with the requests whose answers report theirs."""
    counted_tokens: int = 0
    """Prompt tokens that these answers report."""
    cached_tokens: int | None = None
    """Prompt tokens that the server found in its prefix cache; None: no answer reports them."""

    def add(
        self, spec: RequestSpec, prompt_tokens: int | None, cached_tokens: int | None, *, is_text: bool
    ) -> None:
        """Count a complete answer, with the prompt tokens that it reports (None: it does not).

        ``is_text``: whether its prompt was sent as text.
        """
        self.texts += is_text
        if cached_tokens is not None:
            self.cached_tokens = (self.cached_tokens or 0) + cached_tokens
        if prompt_tokens is None:
            self.without_usage += 1
            return
        difference = abs(prompt_tokens - spec.prompt_tokens)
        self.miscounted += difference > (TEXT_TOLERANCE if is_text else 0)
        self.sent_tokens += spec.prompt_tokens
        self.counted_tokens += prompt_tokens
