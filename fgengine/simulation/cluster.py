"""A simulated cluster: replicas and a router, driven by events. An arrival affects one replica only. Pure."""

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
    """Several simulated replicas and the router that distributes requests among them.

    ``fgengine.simulation.setup.make_cluster`` creates one:

        cluster = make_cluster(config, shape, profile, replicas=4, router="least-loaded")
        for completion in cluster.serve(requests):
            print(completion.request.id, completion.request.phase_since)
    """

    def __init__(self, replicas: Sequence[Replica], router: Router) -> None:
        self.replicas = replicas
        self.router = router
        self._events: list[tuple[float, int]] = []
        """A heap of (time of a replica's next event, index of the replica); outdated entries remain in it."""

    def serve(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Serve the requests in an open loop and yield each one when it ends.

        Args:
            requests: sorted by arrival; each one is taken from the iterator only at its arrival.
        """
        for request in requests:
            # Process arrivals before events of the same time, so that a step beginning then can include them.
            yield from self._advance(request.arrival)
            self._receive(request)
        yield from self._advance(math.inf)

    def serve_closed(
        self, requests: Iterable[Request], concurrency: int, duration: float = math.inf
    ) -> Iterator[Completion]:
        """Serve the requests in a closed loop and yield each one when it ends.

        Each of ``concurrency`` workers sends its next request when its last one has ended. A worker whose
        request was refused because the queue was full first waits for the time given in the refusal. Workers
        send nothing after ``duration`` seconds. This method sets ``arrival`` of each request.
        """
        waiting = iter(requests)
        ready_times = [0.0] * concurrency
        """A heap of the times at which the workers without an open request may send."""
        while True:
            endings = self._next(ready_times[0] if ready_times else math.inf)
            if endings is not None:
                for ending in endings:
                    heappush(ready_times, _ready_at(ending))
                    yield ending
                continue
            if not ready_times:
                return
            at = heappop(ready_times)
            if at < duration and (request := next(waiting, None)) is not None:
                request.arrival = request.phase_since = at
                self._receive(request)

    def stats(self) -> dict[str, float]:
        """Return the counters of ``Engine.stats`` so far, summed over the replicas.

        They are the fields of ``Counters`` and ``copy_wait_seconds``. Only ``uptime_seconds`` is not a sum:
        it is the simulated time since the start.
        """
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
        """Process all events before ``until`` and yield the requests that end."""
        while (endings := self._next(until)) is not None:
            yield from endings

    def _next(self, until: float) -> list[Completion] | None:
        """Process the next event. Returns the requests that end; None if no event is before ``until``."""
        events = self._events
        while events and events[0][0] < until:
            at, index = heappop(events)
            replica = self.replicas[index]
            if at != replica.next_at:
                continue  # outdated: an arrival has moved the event to an earlier time
            endings = replica.advance()
            if replica.next_at < math.inf:
                heappush(events, (replica.next_at, index))
            return endings
        return None


def _ready_at(ending: Completion) -> float:
    """Return the time at which a worker may send its next request, seconds."""
    pause = ending.refusal.whole_seconds if isinstance(ending.refusal, Busy) else 0.0
    return ending.request.phase_since + pause
