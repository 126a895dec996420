"""The first-come, first-served policy."""

from __future__ import annotations

import math
from collections.abc import Collection

from fgengine.request import Request
from fgengine.scheduling.policy import Priority, SortedPolicy


class FCFS(SortedPolicy):
    """First come, first served: requests run in order of arrival, each to completion.

    A running request is preempted only if device memory runs short; the newest request is evicted first.
    Source: Orca (OSDI'22); vLLM's default policy does the same.

        Engine.from_config(EngineConfig(policy="fcfs"))
    """

    summary = "first come, first served, as in vLLM"
    paper = "Orca, OSDI'22"

    def key(self, request: Request) -> Priority:
        """Return (arrival,)."""
        return (request.arrival,)

    def on_step(self, request: Request, seconds: float, now: float) -> None:
        """Do nothing: the order depends only on arrival times."""

    def steady_seconds(self, running: Collection[Request], now: float) -> float:
        """Return infinity: only arrivals and ends change the order."""
        return math.inf
