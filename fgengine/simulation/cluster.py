"""Replicas behind a router, driven by events: an arrival touches one replica and no other. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from heapq import heappop, heappush

from fgengine.request import Request
from fgengine.scheduling.refusal import Busy
from fgengine.simulation.replica import Completion, Replica
from fgengine.simulation.routing import Router


class Cluster:
    def __init__(self, replicas: Sequence[Replica], router: Router) -> None:
        self.replicas = replicas
        self.router = router
        self._events: list[tuple[float, int]] = []
        """A heap of (when a replica has something to do, its index); those that no longer hold stay in it."""

    def serve(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Every request as it ends. ``requests`` are in order of arrival and taken as their time comes."""
        for request in requests:
            # At one moment arrivals come first, so that a step that begins then can already hold them.
            yield from self._advance(request.arrival)
            self._receive(request)
        yield from self._advance(math.inf)

    def serve_closed(
        self, requests: Iterable[Request], concurrency: int, duration: float = math.inf
    ) -> Iterator[Completion]:
        """The same in a closed loop: ``concurrency`` workers, each sending the next request at the moment its
        last has ended, none after ``duration`` seconds. A worker whose request was refused for want of time
        waits first for as long as it was told to. When requests arrive is set here."""
        waiting = iter(requests)
        free = [0.0] * concurrency
        """A heap: when each worker that is not waiting for an answer may send."""
        while True:
            endings = self._next(free[0] if free else math.inf)
            if endings is not None:
                for ending in endings:
                    heappush(free, _free_at(ending))
                    yield ending
                continue
            if not free:
                return
            at = heappop(free)
            if at < duration and (request := next(waiting, None)) is not None:
                request.arrival = request.phase_since = at
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

    def _advance(self, until: float) -> Iterator[Completion]:
        """All that happens before ``until``."""
        while (endings := self._next(until)) is not None:
            yield from endings

    def _next(self, until: float) -> list[Completion] | None:
        """What ends with the next event; None where there is none before ``until``."""
        events = self._events
        while events and events[0][0] < until:
            at, index = heappop(events)
            replica = self.replicas[index]
            if at != replica.next_at:
                continue  # its steps were cut short since
            endings = replica.advance()
            if replica.next_at < math.inf:
                heappush(events, (replica.next_at, index))
            return endings
        return None


def _free_at(ending: Completion) -> float:
    """When a worker may send its next request, seconds."""
    pause = ending.refusal.whole_seconds if isinstance(ending.refusal, Busy) else 0.0
    return ending.request.phase_since + pause
