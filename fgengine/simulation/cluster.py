"""Replicas behind a router, driven by events: an arrival touches one replica and no other. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from heapq import heappop, heappush
from itertools import islice

from fgengine.request import Request
from fgengine.simulation.replica import Ending, Replica
from fgengine.simulation.routing import Router


class Cluster:
    def __init__(self, replicas: Sequence[Replica], router: Router) -> None:
        self.replicas = replicas
        self.router = router
        self._events: list[tuple[float, int]] = []
        """A heap of (when a replica has something to do, its index); those that no longer hold stay in it."""

    def serve(self, requests: Iterable[Request]) -> Iterator[Ending]:
        """Every request as it ends. ``requests`` are in order of arrival and taken as their time comes."""
        for request in requests:
            # At one moment arrivals come first, so that a step that begins then can already hold them.
            yield from self._advance(request.arrival)
            self._receive(request)
        yield from self._advance(math.inf)

    def serve_closed(
        self, requests: Iterable[Request], concurrency: int, duration: float = math.inf
    ) -> Iterator[Ending]:
        """The same in a closed loop: ``concurrency`` workers, each sending the next request at the moment its
        last has ended, none after ``duration`` seconds. When requests arrive is set here."""
        waiting = iter(requests)
        for request in islice(waiting, concurrency):
            self._receive(request)
        for ending in self._advance(math.inf):
            yield ending
            if ending.request.phase_since >= duration:
                continue
            for request in islice(waiting, 1):
                request.arrival = request.phase_since = ending.request.phase_since
                self._receive(request)

    def stats(self) -> dict[str, float]:
        """What ``Engine.stats`` counts, so far, in sum over the replicas: requests, blocks, tokens, and the
        seconds of ``Counters`` and of waiting for copies. ``uptime_seconds`` alone is no sum: the simulated
        seconds since the start."""
        sums: dict[str, float] = {}
        for replica in self.replicas:
            counted = asdict(replica.scheduler.counters) | {"copy_wait_seconds": replica.copy_wait_seconds}
            for name, value in counted.items():
                sums[name] = sums.get(name, 0) + value
        return sums | {"uptime_seconds": max(replica.clock.now() for replica in self.replicas)}

    def _receive(self, request: Request) -> None:
        index = self.router(self.replicas)
        replica = self.replicas[index]
        before = replica.next_at
        replica.receive(request)
        if replica.next_at != before:
            heappush(self._events, (replica.next_at, index))

    def _advance(self, until: float) -> Iterator[Ending]:
        """All that happens before ``until``."""
        events = self._events
        while events and events[0][0] < until:
            at, index = heappop(events)
            replica = self.replicas[index]
            if at != replica.next_at:
                continue  # its leap was cut short since
            yield from replica.advance()
            if replica.next_at < math.inf:
                heappush(events, (replica.next_at, index))
