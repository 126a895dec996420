"""First come, first served."""

from __future__ import annotations

from fgengine.request import Request
from fgengine.scheduling.policy import Priority, SortedPolicy


class FCFS(SortedPolicy):
    """In order of arrival, run to completion: only memory pressure stops a request, the newest first."""

    summary = "first come, first served; what Orca and vLLM do"

    def key(self, request: Request) -> Priority:
        return (request.arrival,)
