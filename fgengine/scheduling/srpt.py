"""The policy shortest remaining processing time, with known output lengths."""

from __future__ import annotations

import math
from collections.abc import Collection

from fgengine.cost import CostModel
from fgengine.request import Request
from fgengine.scheduling.policy import PolicyContext, Priority, SortedPolicy

GRID_BITS = 4
"""Leading bits that ``on_grid`` keeps."""


def on_grid(tokens: int) -> int:
    """Round ``tokens`` down to its ``GRID_BITS`` leading bits.

    Policies that rank by progress use the rounded number. A request of n tokens then changes its place about
    8 log2(n) times instead of n times. The error is less than one eighth.
    """
    shift = max(0, tokens.bit_length() - GRID_BITS)
    return tokens >> shift << shift


def next_on_grid(tokens: int) -> int:
    """Return the smallest number above ``tokens`` that ``on_grid`` does not change."""
    shift = max(0, tokens.bit_length() - GRID_BITS)
    return ((tokens >> shift) + 1) << shift


class SRPT(SortedPolicy):
    """Shortest remaining machine time first: the rest of the prefill and the output tokens still to come.

    It is an oracle: it uses ``max_tokens`` as the output length. This is exact if EOS is ignored, as in
    benchmarks with forced lengths; otherwise it is an upper bound. Its mean JCT is close to the lowest
    possible one. For tail latencies and TTFT other policies are often better. Needs a cost model. Source:
    Schrage and Miller, Operations Research 1966.

        Engine.from_config(EngineConfig(policy="srpt"))

    Raises ValueError if the context has no cost model.
    """

    summary = "shortest remaining time first, by an oracle (max_tokens): about the lowest possible mean JCT"
    paper = "Schrage and Miller, Operations Research 1966"
    needs_cost = True

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        if context.cost is None:
            raise ValueError("srpt needs a cost model for processing times: give --profile")
        self.cost: CostModel = context.cost
        self._left: dict[str, int] = {}
        """Output tokens still to come, rounded with ``on_grid``, by request id."""

    def key(self, request: Request) -> Priority:
        """Return (predicted remaining machine time in seconds,)."""
        left = self._left[request.id]
        computed, pending = request.num_computed, request.num_pending
        if pending == 1:
            computed = request.prompt_len - 1  # without generated tokens; the progress is in ``left``
        return (self.cost.remaining_share_seconds(computed, pending, left, self.context.max_batch_size),)

    def add(self, request: Request, now: float) -> None:
        self._left[request.id] = on_grid(self._tokens_left(request))
        super().add(request, now)

    def remove(self, request: Request) -> None:
        super().remove(request)
        del self._left[request.id]

    def on_step(self, request: Request, seconds: float, now: float) -> None:
        """Compute the key again during prefill, or if the rounded number of tokens left has changed."""
        left = on_grid(self._tokens_left(request))
        if left != self._left[request.id] or request.num_generated <= 1:
            self._left[request.id] = left
            super().on_step(request, seconds, now)

    def steady_seconds(self, running: Collection[Request], now: float) -> float:
        """Return infinity: progress moves the running requests only forward in the order."""
        return math.inf

    @staticmethod
    def _tokens_left(request: Request) -> int:
        return request.params.max_tokens - request.num_generated
