"""Shortest remaining processing time, by an oracle."""

from __future__ import annotations

from fgengine.request import Request
from fgengine.scheduling.policy import Priority, SortedPolicy


class SRPT(SortedPolicy):
    """Fewest iterations left first.

    An oracle: it takes ``max_tokens`` for the output length, which is true where EOS is ignored, as in
    benchmarks with forced lengths; elsewhere it is only an upper bound.
    """

    summary = "shortest remaining first, by an oracle (max_tokens with ignore_eos): the bound for the others"

    def key(self, request: Request) -> Priority:
        return (request.params.max_tokens - request.num_generated,)
