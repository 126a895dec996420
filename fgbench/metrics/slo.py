"""Service-level objectives: bounds on latencies, for a run or for each of its requests. Pure.

A bound is written ``[statistic] metric < limit``: ``normalized_latency<0.3``, ``p95 jct < 20``,
``ttft<500ms``. The default statistic is the mean. Bounds joined by commas must all hold. Limits are in
seconds (seconds per token for metrics per token), or have a unit, ``ms`` or ``s``. A figure equal to its
limit meets the bound.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fgbench.metrics.metric import METRICS, OF_REQUESTS, metric_called
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.statistics import Distribution

STATISTICS = ("mean", "min", "p50", "p90", "p95", "p99", "max")
BOUNDED = tuple(metric.key for metric in METRICS if metric.can_be_bounded)
_ALIASES = {alias: metric.key for metric in METRICS for alias in metric.aliases}
_STATISTIC_ALIASES = {"average": "mean", "avg": "mean", "median": "p50"}
_BOUND = re.compile(r"(?P<figure>[^<=]+)<=?(?P<limit>[^<=]+)")
_LIMIT = re.compile(
    r"(?P<number>\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?)\s*(?P<unit>ms|s|)(?:/token)?", re.I
)
DEFAULT_SLO = "normalized_latency<0.3"
"""The FastServe paper's SLO, in seconds per token."""
MAX_CHARACTERS = 200
MAX_BOUNDS = 8
MAX_REJECTED = 0.01
"""Largest share of rejected requests with which a run can still meet an SLO."""
EXAMPLE = "write one like 'normalized_latency<0.3', 'p95 jct<20s' or 'ttft<1.55,tpot<150ms'"


@dataclass(frozen=True, slots=True)
class Bound:
    """The bound "``statistic`` of ``metric`` is at most ``limit``", in seconds or seconds per token."""

    metric: str
    statistic: str
    limit: float

    def __str__(self) -> str:
        """Return the text that ``parse_slo`` reads."""
        return f"{'' if self.statistic == 'mean' else self.statistic + ' '}{self.metric}<{self.limit:g}"

    def held_by(self, record: RequestRecord) -> bool:
        """Whether one request meets the bound by its own figure.

        The statistic matters only for inter-token latencies, of which a request has several. An answer of one
        token has no time between tokens, so it meets bounds on such times.
        """
        values = OF_REQUESTS[self.metric](record)
        if not values:
            return metric_called(self.metric).needs_two_tokens and record.output_tokens == 1
        if len(values) == 1:
            return values[0] <= self.limit
        gaps = Distribution.of(values)
        return gaps is not None and float(getattr(gaps, self.statistic)) <= self.limit


@dataclass(frozen=True, slots=True)
class SLO:
    """A list of bounds that must all hold."""

    bounds: tuple[Bound, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.bounds))

    def attained_by(self, record: RequestRecord) -> bool:
        """Whether one request was answered in full and meets every bound."""
        return record.ok and all(bound.held_by(record) for bound in self.bounds)


def rejects_too_many(share: float) -> bool:
    """Whether a run with this share of rejected requests (0 to 1) misses every SLO."""
    return share > MAX_REJECTED


def attainment(records: Sequence[RequestRecord], slo: SLO) -> float | None:
    """Return the share of the requests that attain ``slo``, or None without requests.

    Failed and rejected requests do not attain it.
    """
    return _attained(records, slo) / len(records) if records else None


def goodput(records: Iterable[RequestRecord], slo: SLO, duration: float) -> float:
    """Return the requests per second that attain ``slo``, over ``duration`` seconds; 0 if it is 0."""
    return _attained(records, slo) / duration if duration > 0.0 else 0.0


def window_goodput(records: Sequence[RequestRecord], slo: SLO) -> float | None:
    """Return the requests per second that attain ``slo`` and ended while requests still arrived.

    The last answers, which come after the last arrival, do not count, and neither does their time. None if
    all requests were scheduled at once.
    """
    first = min((record.scheduled for record in records), default=0.0)
    last = max((record.scheduled for record in records), default=0.0)
    ended = [record for record in records if record.finished is not None and record.finished <= last]
    return _attained(ended, slo) / (last - first) if last > first else None


def parse_slo(text: str) -> SLO:
    """Parse an SLO such as ``"ttft<1.55,p95 jct<20s"``.

    Raises:
        ValueError: ``text`` is not an SLO; the message says what is wrong and shows an example.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"an SLO of {len(text)} characters is too long: {EXAMPLE}")
    bounds = tuple(_bound(part.strip()) for part in text.split(","))
    if len(bounds) > MAX_BOUNDS:
        raise ValueError(f"the SLO has {len(bounds)} bounds: give at most {MAX_BOUNDS}")
    figures = [(bound.metric, bound.statistic) for bound in bounds]
    if len(set(figures)) < len(figures):
        raise ValueError(f"the SLO '{text}' bounds one figure twice: give one limit for each figure")
    return SLO(bounds)


def _bound(text: str) -> Bound:
    if (match := _BOUND.fullmatch(text)) is None:
        raise ValueError(f"'{text}' is not a bound on a latency: {EXAMPLE}")
    metric, statistic = _figure(match["figure"].strip())
    return Bound(metric, statistic, _limit(match["limit"].strip(), text))


def _figure(text: str) -> tuple[str, str]:
    """Return metric and statistic.

    The statistic may come first or last, with any separator: ``p95 jct``, ``jct.p95``.
    """
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    first, _, rest = name.partition("_")
    start, _, last = name.rpartition("_")
    for statistic, metric in ((first, rest), (last, start)):
        statistic = _STATISTIC_ALIASES.get(statistic, statistic)
        if statistic in STATISTICS:
            return _metric(metric, text), statistic
    return _metric(name, text), "mean"


def _metric(name: str, text: str) -> str:
    metric = _ALIASES.get(name, name)
    if metric not in BOUNDED:
        raise ValueError(
            f"'{text}' is no figure that an SLO can bound: give one of {', '.join(BOUNDED)}, after one of "
            f"{', '.join(STATISTICS)} if it is not the mean"
        )
    return metric


def _limit(text: str, bound: str) -> float:
    match = _LIMIT.fullmatch(text)
    limit = float(match["number"]) if match else math.nan
    if match is None or not 0.0 < limit < math.inf:
        raise ValueError(
            f"'{bound}' has no valid limit: give seconds above 0, such as '20', '20s' or '500ms'"
        )
    return limit / 1000.0 if match["unit"].lower() == "ms" else limit


def _attained(records: Iterable[RequestRecord], slo: SLO) -> int:
    return sum(slo.attained_by(record) for record in records)
