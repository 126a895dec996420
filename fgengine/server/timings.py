"""What the server measures of its requests: latencies, lengths and ends, as histograms and counters.

A streamed token costs one search in a short list. All of it is for one thread, the one of the event loop, so
nothing is locked. ``metrics`` serves the figures.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from fgengine.clock import WallClock

LATENCY_BUCKETS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
"""Upper bounds in seconds of the parts of a request's life. These bounds and the next four are vLLM's."""
FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_BUCKETS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
LENGTH_BUCKETS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
"""In tokens. vLLM's list ends at the model's maximum length."""
PREEMPTION_BUCKETS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

FINISH_REASONS = ("stop", "length", "abort", "error")
"""How a request that the engine had accepted can end, in vLLM's words: ``abort``, its client left, or another
answer of it waited too long; ``error``, the engine broke or stopped. One that waited too long itself is not
counted here. Each answer of a request with n > 1 is a request of the engine."""

_now = WallClock().now


class Histogram:
    """Counts values by size.

    seconds = Histogram((0.1, 1.0))
    seconds.observe(0.05)
    seconds.cumulative()  # [1, 1, 1]: up to 0.1, up to 1.0, all
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        """``bounds``: the largest value of each bucket, in rising order. Larger values are counted too."""
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, which may have occurred several times."""
        self._counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def cumulative(self) -> list[int]:
        """Return the number of values up to each bound, and last the number of all values."""
        return list(accumulate(self._counts))


class RequestTimings:
    """The figures of all requests since the server started. Seconds and numbers of tokens."""

    def __init__(self, now: Callable[[], float] = _now) -> None:
        """``now``: the clock that ``arrival`` of a request is given on, in seconds."""
        self.now = now
        self.prompt_tokens = 0
        """Prompt tokens of the requests that got their first token."""
        self.generated_tokens = 0
        self.ended = dict.fromkeys(FINISH_REASONS, 0)
        """Number of requests by how they ended."""
        self.first_token = Histogram(FIRST_TOKEN_BUCKETS)
        self.token_gaps = Histogram(TOKEN_BUCKETS)
        self.mean_token_gap = Histogram(TOKEN_BUCKETS)
        self.whole = Histogram(LATENCY_BUCKETS)
        self.queued = Histogram(LATENCY_BUCKETS)
        self.swapped = Histogram(LATENCY_BUCKETS)
        self.prefill = Histogram(LATENCY_BUCKETS)
        self.decode = Histogram(LATENCY_BUCKETS)
        self.computed = Histogram(LATENCY_BUCKETS)
        self.prompt_lengths = Histogram(LENGTH_BUCKETS)
        self.output_lengths = Histogram(LENGTH_BUCKETS)
        self.asked_lengths = Histogram(LENGTH_BUCKETS)
        self.preemptions = Histogram(PREEMPTION_BUCKETS)

    def request(self, prompt_tokens: int, max_tokens: int, arrival: float) -> RequestTiming:
        """Return the object that measures one request. ``arrival``: when it was read."""
        return RequestTiming(self, prompt_tokens, max_tokens, arrival)


class RequestTiming:
    """Measures one request: call ``received`` for tokens, then once ``finished`` or ``broke_off``."""

    __slots__ = ("_all", "_arrival", "_first", "_last", "_max_tokens", "_prompt_tokens", "_tokens")

    def __init__(self, timings: RequestTimings, prompt_tokens: int, max_tokens: int, arrival: float) -> None:
        self._all = timings
        self._arrival = arrival
        self._first = self._last = 0.0
        self._tokens = 0
        self._prompt_tokens = prompt_tokens
        self._max_tokens = max_tokens

    def received(self, tokens: int) -> None:
        """Record that tokens have arrived from the engine, one or several together.

        Tokens that arrive together share the time since those before them. So the sum of all gaps is the time
        from the first token to the last one.
        """
        timings, now = self._all, self._all.now()
        timings.generated_tokens += tokens
        if self._tokens:
            timings.token_gaps.observe((now - self._last) / tokens, tokens)
        else:
            timings.prompt_tokens += self._prompt_tokens
            timings.first_token.observe(now - self._arrival)
            self._first = now
            if tokens > 1:
                timings.token_gaps.observe(0.0, tokens - 1)
        self._tokens += tokens
        self._last = now

    def finished(self, reason: str, seconds: Mapping[str, float]) -> None:
        """Record the end of a request that has its whole answer.

        Args:
            reason: why it ended, one of ``FINISH_REASONS``.
            seconds: the engine's accounting of the request; see ``Request.accounting``.
        """
        timings = self._all
        timings.ended[reason] = timings.ended.get(reason, 0) + 1
        timings.whole.observe(timings.now() - self._arrival)
        timings.queued.observe(seconds["queued"])
        timings.swapped.observe(seconds["swapped"])
        timings.prefill.observe(seconds["prefill"])
        timings.decode.observe(seconds["decode"])
        timings.computed.observe(seconds["prefill"] + seconds["decode"])
        timings.preemptions.observe(seconds["preemptions"])
        timings.prompt_lengths.observe(self._prompt_tokens)
        timings.output_lengths.observe(self._tokens)
        timings.asked_lengths.observe(self._max_tokens)
        if self._tokens > 1:
            timings.mean_token_gap.observe((self._last - self._first) / (self._tokens - 1))

    def broke_off(self, reason: str) -> None:
        """Record that a request ended without its whole answer; ``reason``: "abort" or "error"."""
        self._all.ended[reason] += 1
