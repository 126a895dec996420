"""How much computed work may be thrown away. Pure."""

from __future__ import annotations

import math

THROWN_SHARE = 0.04
"""Of the computed tokens, the share that may be thrown away and computed again."""


class RecomputeBudget:
    """A debt of tokens: what is thrown away adds to it, and each computed token pays ``THROWN_SHARE`` of one.

    Where lengths are unknown, starting a request that fits now may cost another one its KV later. That is
    mostly worth it, since it fills the batch; but only while the debt is paid is it done. In debt a request
    starts only if all that have started could run to their longest.
    """

    def __init__(self) -> None:
        self._debt = 0.0

    @property
    def in_debt(self) -> bool:
        return self._debt > 0.0

    def computed(self, tokens: int) -> None:
        if self._debt > 0.0:
            self._debt = max(0.0, self._debt - THROWN_SHARE * tokens)

    def thrown_away(self, tokens: int) -> None:
        self._debt += tokens

    def steps_in_debt(self, tokens: int) -> int:
        """Steps of so many tokens each until the debt is paid."""
        return math.ceil(self._debt / (THROWN_SHARE * max(1, tokens)))
