"""First come, first served."""

from __future__ import annotations

import math
from collections.abc import Collection

from fgengine.request import Request
from fgengine.scheduling.policy import Priority, SortedPolicy


class FCFS(SortedPolicy):
    """In order of arrival, run to completion: only memory pressure stops a request, the newest first."""

    summary = "first come, first served; vLLM's too"
    paper = "Orca, OSDI'22"

    def key(self, request: Request) -> Priority:
        return (request.arrival,)

    def on_step(self, request: Request, seconds: float, now: float) -> None:
        """No progress changes its place."""

    def steady_seconds(self, running: Collection[Request], now: float) -> float:
        return math.inf
