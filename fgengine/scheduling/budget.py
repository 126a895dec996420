"""How much computed work may be thrown away. Pure."""

from __future__ import annotations

TOKENS_PER_THROWN = 25
"""Computed tokens that pay for one that was thrown away: a share of 4%."""


class RecomputeBudget:
    """A debt of tokens: what is thrown away adds to it, and each computed token pays a share of one.

    Where lengths are unknown, starting a request that fits now may cost another one its KV later. That is
    mostly worth it, since it fills the batch; but only while the debt is paid is it done. In debt a request
    starts only if all that have started could run to their longest.
    """

    def __init__(self) -> None:
        self._unpaid = 0
        """Tokens to compute until the debt is paid."""

    @property
    def in_debt(self) -> bool:
        return self._unpaid > 0

    def computed(self, tokens: int) -> None:
        self._unpaid = max(0, self._unpaid - tokens)

    def thrown_away(self, tokens: int) -> None:
        self._unpaid += TOKENS_PER_THROWN * tokens

    def steps_in_debt(self, tokens: int) -> int:
        """Steps of so many tokens each until the debt is paid."""
        return -(-self._unpaid // max(1, tokens))
