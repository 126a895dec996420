"""Shortest job first by predicted length, with aging; who has begun runs to its end."""

from __future__ import annotations

import math
from collections.abc import Collection

from fgengine.request import Request
from fgengine.scheduling.policy import PolicyContext, Priority
from fgengine.scheduling.predicting import PredictingPolicy

LONG_TOKENS = 1024.0
"""Predicted lengths from here on count alike."""


class SJF(PredictingPolicy):
    """Those that wait go by a deadline: their arrival plus ``starvation_limit`` times their predicted length,
    as a share of ``LONG_TOKENS``. So nobody is overtaken by a request that came more than
    ``starvation_limit`` seconds later."""

    summary = "shortest predicted job first, not preemptive, with aging"
    paper = "SSJF (Qiu et al., AIOps'24)"

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self._begun: set[str] = set()

    def key(self, request: Request) -> Priority:
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
        """No progress changes its place."""

    def steady_seconds(self, running: Collection[Request], now: float) -> float:
        return math.inf
