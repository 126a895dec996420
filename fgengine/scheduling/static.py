"""The policy of static batches."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterator
from itertools import islice

from fgengine.request import Request
from fgengine.scheduling.policy import Policy, PolicyContext, Priority


class Static(Policy):
    """Static batching: a batch of the earliest requests runs to completion before the next batch is formed.

    No request joins a running batch; the place of an ended request remains empty. Each answer is sent when
    its request ends, not when the batch ends. Source: FasterTransformer, a baseline of FastServe (NSDI'26).

        Engine.from_config(EngineConfig(policy="static"))
    """

    summary = "batches run to completion, one after another"
    paper = "FasterTransformer"

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self._batch: dict[str, Request] = {}
        self._waiting: OrderedDict[str, Request] = OrderedDict()
        self._serials: dict[str, int] = {}
        """Number of each request in order of arrival, by request id."""
        self._arrived = 0

    def add(self, request: Request, now: float) -> None:
        self._arrived += 1
        self._serials[request.id] = self._arrived
        self._waiting[request.id] = request

    def remove(self, request: Request) -> None:
        del self._serials[request.id]
        if self._batch.pop(request.id, None) is None:
            del self._waiting[request.id]

    def order(self, now: float) -> Iterator[Request]:
        """Yield the requests of the running batch only; form the next batch if it has ended."""
        if not self._batch:
            for id in list(islice(self._waiting, self.context.max_batch_size)):
                self._batch[id] = self._waiting.pop(id)
        return iter(self._batch.values())

    def priority(self, request: Request) -> Priority:
        """Return (whether the request waits, its number in order of arrival)."""
        return (request.id not in self._batch, self._serials[request.id])

    def steady_seconds(self, running: Collection[Request], now: float) -> float:
        """Return infinity: only arrivals and ends change the order."""
        return math.inf
