"""The state of a running load, which the live display shows.

The thread of the load writes it, and the thread of the display reads it. The writer only needs a few
microseconds per request or piece of an answer. The reader does all sorting, summing and drawing.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from fgbench.client.usage import UsageTally
from fgbench.metrics.metric import METRICS
from fgbench.metrics.record import RequestRecord
from fgbench.workload.workload import RequestSpec

MIN_VALUE, MAX_VALUE = 1e-6, 1e6
"""Range of the buckets; a value outside counts in the first or the last bucket."""
GROWTH = 1.04
"""Ratio of neighbouring buckets; the error of a quantile is below 2 %."""
_SCALE = 1.0 / math.log(GROWTH)
_BUCKETS = math.ceil(math.log(MAX_VALUE / MIN_VALUE) * _SCALE) + 1


class Running:
    """Count, mean and quantiles of numbers >= 0, in about 5 KB for any number of values."""

    __slots__ = ("_buckets", "count", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self._buckets = [0] * _BUCKETS
        """Number of values per bucket; the middle of bucket i is MIN_VALUE * GROWTH**i."""

    def add(self, value: float) -> None:
        """Add a value."""
        self.count += 1
        self.total += value
        if value <= MIN_VALUE:
            self._buckets[0] += 1
        else:
            self._buckets[min(_BUCKETS - 1, round(math.log(value / MIN_VALUE) * _SCALE))] += 1

    @property
    def mean(self) -> float | None:
        """Mean of the values; None if there are none."""
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """Return the value that ``share`` (0 to 1) of the values do not exceed; None if there are none."""
        if not self.count:
            return None
        rank = max(1, math.ceil(share * self.count))
        for index, count in enumerate(self._buckets):
            rank -= count
            if rank <= 0:
                return MIN_VALUE * GROWTH**index
        return MAX_VALUE  # another thread has increased the count but not yet the bucket


RECENT_SECONDS = 30.0
"""Seconds over which recent means are computed."""
RECENT_LIMIT = 1000
"""Maximum number of requests stored for recent means."""
LIVE = tuple(metric for metric in METRICS if metric.live)
_VALUES = tuple(metric.of_request for metric in LIVE if metric.of_request is not None)
Latencies = tuple[float | None, ...]
"""The values of one request, in the order and units of ``LIVE``."""


@dataclass(slots=True)
class LoadState:
    """Progress and figures of a running load."""

    planned: int
    """Number of requests to send."""
    last_arrival: float
    """Scheduled time of the last request, in seconds since the start."""
    schedule: Sequence[float] = ()
    """Scheduled times of all requests, ascending, in seconds since the start; empty: not known."""
    workers: int | None = None
    """Number of workers of a closed loop; None: an open loop."""
    duration: float = math.inf
    """Seconds after which no more requests are sent."""
    elapsed: float = 0.0
    """Seconds since the start."""
    sent: int = 0
    ok: int = 0
    failed: int = 0
    rejected: int = 0
    tokens: int = 0
    """Output tokens so far: streamed pieces, corrected by the server's usage when a request ends."""
    last_error: str | None = None
    usage: UsageTally = field(default_factory=UsageTally, repr=False)
    """What the complete answers report about their tokens."""
    lag: Running = field(default_factory=Running, repr=False)
    """Lag of the client: seconds from a request's scheduled time to its sending."""
    latencies: tuple[Running, ...] = field(default_factory=lambda: tuple(Running() for _ in LIVE))
    """Values of requests answered in full, in the order of ``LIVE``."""
    _recent: deque[tuple[float, Latencies]] = field(
        default_factory=lambda: deque(maxlen=RECENT_LIMIT), repr=False
    )
    """Time of the end, and values, of each recent request."""

    @classmethod
    def of(cls, requests: Sequence[RequestSpec]) -> LoadState:
        """Return the state before a load of these requests."""
        schedule = sorted(request.scheduled for request in requests)
        return cls(len(requests), schedule[-1] if schedule else 0.0, schedule)

    def bound(self, workers: int | None, duration: float) -> None:
        """Set the limits of the load before it begins. Drops an open loop's requests after ``duration``."""
        self.workers, self.duration = workers, duration
        if workers is None and self.schedule:
            self.schedule = self.schedule[: bisect_left(self.schedule, duration)]
            self.planned = len(self.schedule)
            self.last_arrival = self.schedule[-1] if self.schedule else 0.0

    def leave(self, lag: float) -> None:
        """Count a request that is being sent, ``lag`` seconds after its scheduled time."""
        self.sent += 1
        self.lag.add(lag)

    def take(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
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
        """Number of requests that have ended."""
        return self.ok + self.failed + self.rejected

    @property
    def in_flight(self) -> int:
        """Number of requests that were sent and have not ended."""
        return self.sent - self.ended

    @property
    def due(self) -> int:
        """Number of requests whose scheduled time has passed."""
        return bisect_right(self.schedule, self.elapsed)

    @property
    def offered_rate(self) -> float | None:
        """Requests per second scheduled so far; None for fewer than two requests, and for a closed loop."""
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
        """Mean JCT in seconds; None if no request has ended."""
        return self._mean("jct")

    @property
    def mean_normalized_latency(self) -> float | None:
        """Mean normalized latency in seconds per output token; None if no request has ended."""
        return self._mean("normalized_latency")

    @property
    def share(self) -> float:
        """Finished share of the load, 0 to 1: of its requests, or of its duration if that is larger."""
        of_requests = self.ended / self.planned if self.planned else 0.0
        if self.workers is None or self.ended == self.planned:
            return of_requests
        return max(of_requests, min(1.0, self.elapsed / self.duration))

    @property
    def remaining(self) -> float | None:
        """Estimated remaining seconds, if requests continue to end at the same rate; None: not known yet.

        In an open loop, at least until the last request is sent.
        """
        if not self.ended:
            return None
        at_this_speed = (self.planned - self.ended) * self.elapsed / self.ended
        if self.workers is not None:
            return min(at_this_speed, max(0.0, self.duration - self.elapsed))
        return max(self.last_arrival - self.elapsed, at_this_speed)

    def recent_means(self) -> tuple[float | None, ...]:
        """Return the mean of each of ``LIVE`` over the requests that ended in the last ``RECENT_SECONDS``.

        At most ``RECENT_LIMIT`` requests count.
        """
        since = self.elapsed - RECENT_SECONDS
        # Iterate over a copy, because another thread may append.
        ended = [figures for at, figures in list(self._recent) if at >= since]
        columns = ([f[k] for f in ended if f[k] is not None] for k in range(len(LIVE)))
        return tuple(sum(column) / len(column) if column else None for column in columns)  # type: ignore[arg-type]

    def _mean(self, key: str) -> float | None:
        return next(
            running.mean for metric, running in zip(LIVE, self.latencies, strict=True) if metric.key == key
        )

    def _rate(self, count: int) -> float | None:
        window = min(self.elapsed, self.last_arrival)
        return (count - 1) / window if window > 0 and count > 1 else None
