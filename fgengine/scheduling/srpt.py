"""Shortest remaining processing time, by an oracle."""

from __future__ import annotations

import math
from collections.abc import Collection

from fgengine.cost import CostModel
from fgengine.request import Request
from fgengine.scheduling.policy import PolicyContext, Priority, SortedPolicy

GRID_BITS = 4


def on_grid(tokens: int) -> int:
    """``tokens`` rounded down to its four leading bits.

    What ranks by progress looks at it only here: a request of n tokens then changes its place some
    8 log2(n) times instead of n times, at less than an eighth's error.
    """
    shift = max(0, tokens.bit_length() - GRID_BITS)
    return tokens >> shift << shift


def next_on_grid(tokens: int) -> int:
    """The smallest number above ``tokens`` that ``on_grid`` leaves as it is."""
    shift = max(0, tokens.bit_length() - GRID_BITS)
    return ((tokens >> shift) + 1) << shift


class SRPT(SortedPolicy):
    """Least of the machine's time left first: what is left of the prefill, and the tokens to come.

    An oracle: it takes ``max_tokens`` for the output length, which is true where EOS is ignored, as in
    benchmarks with forced lengths; elsewhere it is only an upper bound. What it comes near to is the lowest
    mean JCT of any order; for tails and TTFT other policies are often better.
    """

    summary = "shortest remaining time first, by an oracle (max_tokens): about the lowest mean JCT there is"
    paper = "Schrage and Miller, Operations Research 1966"
    needs_cost = True

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        if context.cost is None:
            raise ValueError("srpt takes processing times from a cost model")
        self.cost: CostModel = context.cost
        self._left: dict[str, int] = {}

    def key(self, request: Request) -> Priority:
        left = self._left[request.id]
        computed, pending = request.num_computed, request.num_pending
        if pending == 1:
            computed = request.prompt_len - 1  # what it attends to; its progress is in ``left``
        return (self.cost.remaining_share_seconds(computed, pending, left, self.context.max_batch_size),)

    def add(self, request: Request, now: float) -> None:
        self._left[request.id] = on_grid(self._tokens_left(request))
        super().add(request, now)

    def remove(self, request: Request) -> None:
        super().remove(request)
        del self._left[request.id]

    def on_step(self, request: Request, seconds: float, now: float) -> None:
        left = on_grid(self._tokens_left(request))
        if left != self._left[request.id] or request.num_generated <= 1:
            self._left[request.id] = left
            super().on_step(request, seconds, now)

    def steady_seconds(self, running: Collection[Request], now: float) -> float:
        """For ever: those that run only come nearer to their end, and the others do not."""
        return math.inf

    @staticmethod
    def _tokens_left(request: Request) -> int:
        return request.params.max_tokens - request.num_generated
