"""The load as it runs: what the live display shows. Pure but for the clock it is given.

The load's loop writes it, the display's thread reads it. What is done for a request or a piece of its answer
takes constant time, a few microseconds in all; sorting, summing and drawing are the reader's.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from fgbench.metrics.metric import METRICS
from fgbench.metrics.record import RequestRecord
from fgbench.workload.workload import RequestSpec

MIN_VALUE, MAX_VALUE = 1e-6, 1e6
"""Values outside are counted at the end they lie beyond."""
GROWTH = 1.04
"""Between one bucket's bound and the next: a quantile is off by less than 2 %."""
_SCALE = 1.0 / math.log(GROWTH)
_BUCKETS = math.ceil(math.log(MAX_VALUE / MIN_VALUE) * _SCALE) + 1


class Running:
    """Count, mean and quantiles of numbers >= 0; about 5 KB, however many they are."""

    __slots__ = ("_buckets", "count", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self._buckets = [0] * _BUCKETS
        """How many lay within a factor of ``GROWTH``, the first one's middle at ``MIN_VALUE``."""

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        if value <= MIN_VALUE:
            self._buckets[0] += 1
        else:
            self._buckets[min(_BUCKETS - 1, round(math.log(value / MIN_VALUE) * _SCALE))] += 1

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """The value that ``share`` (0 to 1) of the sample does not exceed; None where there is none."""
        if not self.count:
            return None
        rank = max(1, math.ceil(share * self.count))
        for index, count in enumerate(self._buckets):
            rank -= count
            if rank <= 0:
                return MIN_VALUE * GROWTH**index
        return MAX_VALUE  # another thread is adding just now


RECENT_SECONDS = 30.0
RECENT_MOST = 1000
"""Requests remembered for means over the last seconds."""
LIVE = tuple(metric for metric in METRICS if metric.live)
_VALUES = tuple(metric.of_request for metric in LIVE if metric.of_request is not None)
Latencies = tuple[float | None, ...]
"""Of a request, one of each of ``LIVE``, in its unit."""


@dataclass(slots=True)
class LoadState:
    planned: int
    last_arrival: float
    """Seconds after the start at which the last request is to leave."""
    schedule: Sequence[float] = ()
    """When each is to leave, ascending; empty: not known."""
    workers: int | None = None
    """Of a closed loop, which has no schedule: a request leaves when one of them is free."""
    duration: float = math.inf
    """Seconds after which nothing is sent any more."""
    elapsed: float = 0.0
    sent: int = 0
    ok: int = 0
    failed: int = 0
    rejected: int = 0
    tokens: int = 0
    """Output tokens so far: streamed pieces, set right by the server's usage as each request ends."""
    last_error: str | None = None
    lag: Running = field(default_factory=Running, repr=False)
    """Of the client itself: sent - scheduled."""
    latencies: tuple[Running, ...] = field(default_factory=lambda: tuple(Running() for _ in LIVE))
    """Of requests answered in full, in the order of ``LIVE``."""
    _recent: deque[tuple[float, Latencies]] = field(
        default_factory=lambda: deque(maxlen=RECENT_MOST), repr=False
    )
    """When each ended."""

    @classmethod
    def of(cls, requests: Sequence[RequestSpec]) -> LoadState:
        schedule = sorted(request.scheduled for request in requests)
        return cls(len(requests), schedule[-1] if schedule else 0.0, schedule)

    def bound(self, workers: int | None, duration: float) -> None:
        """How the load is limited, before it begins; what an open loop will not send is not planned."""
        self.workers, self.duration = workers, duration
        if workers is None and self.schedule:
            self.schedule = self.schedule[: bisect_left(self.schedule, duration)]
            self.planned = len(self.schedule)
            self.last_arrival = self.schedule[-1] if self.schedule else 0.0

    def leave(self, lag: float) -> None:
        """A request is being sent, ``lag`` seconds after its time."""
        self.sent += 1
        self.lag.add(lag)

    def take(self, record: RequestRecord) -> None:
        """A request has ended."""
        if record.rejected is not None:
            self.rejected += 1
            return
        if not record.ok:
            self.failed += 1
            self.last_error = record.error
            return
        self.ok += 1
        self.tokens += record.output_tokens - len(record.token_times)
        figures = tuple([found[0] if (found := values(record)) else None for values in _VALUES])
        for running, value in zip(self.latencies, figures, strict=True):
            if value is not None:
                running.add(value)
        self._recent.append((self.elapsed, figures))

    @property
    def ended(self) -> int:
        return self.ok + self.failed + self.rejected

    @property
    def in_flight(self) -> int:
        return self.sent - self.ended

    @property
    def due(self) -> int:
        """Requests whose time to leave has come."""
        return bisect_right(self.schedule, self.elapsed)

    @property
    def offered_rate(self) -> float | None:
        """Requests per second that were to leave so far; None before there are two, and in a closed loop."""
        return None if self.workers is not None else self._rate(self.due)

    @property
    def achieved_rate(self) -> float:
        """Requests per second sent so far."""
        return self._rate(self.sent) or 0.0

    @property
    def answered_rate(self) -> float:
        """Requests per second answered in full so far."""
        return self.ok / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def mean_latency(self) -> float | None:
        return self._mean("jct")

    @property
    def mean_normalized_latency(self) -> float | None:
        """Seconds per output token."""
        return self._mean("normalized_latency")

    @property
    def share(self) -> float:
        """How much of it is done, 0 to 1: of its requests, or of its time where that ends it sooner."""
        of_requests = self.ended / self.planned if self.planned else 0.0
        if self.workers is None or self.ended == self.planned:
            return of_requests
        return max(of_requests, min(1.0, self.elapsed / self.duration))

    @property
    def remaining(self) -> float | None:
        """Seconds to go if requests go on ending as they have, and at least until the last one leaves."""
        if not self.ended:
            return None
        at_this_speed = (self.planned - self.ended) * self.elapsed / self.ended
        if self.workers is not None:
            return min(at_this_speed, max(0.0, self.duration - self.elapsed))
        return max(self.last_arrival - self.elapsed, at_this_speed)

    def recent_means(self) -> tuple[float | None, ...]:
        """Of each of ``LIVE``, over what ended in the last ``RECENT_SECONDS``, so far as remembered."""
        since = self.elapsed - RECENT_SECONDS
        ended = [figures for at, figures in list(self._recent) if at >= since]  # a copy: it grows meanwhile
        columns = ([f[k] for f in ended if f[k] is not None] for k in range(len(LIVE)))
        return tuple(sum(column) / len(column) if column else None for column in columns)  # type: ignore[arg-type]

    def _mean(self, key: str) -> float | None:
        return next(
            running.mean for metric, running in zip(LIVE, self.latencies, strict=True) if metric.key == key
        )

    def _rate(self, count: int) -> float | None:
        window = min(self.elapsed, self.last_arrival)
        return (count - 1) / window if window > 0 and count > 1 else None
