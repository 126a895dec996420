"""The policy shortest predicted job first, not preemptive, with aging."""

from __future__ import annotations

import math
from collections.abc import Collection

from fgengine.request import Request
from fgengine.scheduling.policy import PolicyContext, Priority
from fgengine.scheduling.predicting import PredictingPolicy

LONG_TOKENS = 1024.0
"""Predicted lengths above this limit count as equal, tokens."""


class SJF(PredictingPolicy):
    """Shortest predicted job first, with aging: a started request runs to completion.

    Waiting requests are sorted by a deadline. It is arrival + ``starvation_limit`` * min(1, predicted length
    / ``LONG_TOKENS``). A request is therefore never overtaken by one that arrived more than
    ``starvation_limit`` seconds later. Needs a cost model and a predictor. Source: SSJF (Qiu et al.,
    AIOps'24).

        Engine.from_config(EngineConfig(policy="sjf", predictor="oracle"))
    """

    summary = "shortest predicted job first, not preemptive, with aging"
    paper = "SSJF (Qiu et al., AIOps'24)"

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self._begun: set[str] = set()

    def key(self, request: Request) -> Priority:
        """Return (0 if the request has started, else 1; its deadline)."""
        waits = 0.0 if request.id in self._begun else 1.0
        share = min(1.0, self.predictions[request.id].median / LONG_TOKENS)
        return (waits, request.arrival + self.context.starvation_limit * share)

    def remove(self, request: Request) -> None:
        super().remove(request)
        self._begun.discard(request.id)

    def on_start(self, request: Request) -> None:
        self._begun.add(request.id)
        self.replace(request)

    def on_step(self, request: Request, seconds: float, now: float) -> None:
        """Do nothing: the order does not depend on progress."""

    def steady_seconds(self, running: Collection[Request], now: float) -> float:
        """Return infinity: only arrivals, starts and ends change the order."""
        return math.inf
