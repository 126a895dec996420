"""Service-level objectives: bounds on latencies, for a whole run or for each request of it. Pure.

A bound is written ``[statistic] metric < limit``: ``normalized_latency<0.3``, ``p95 jct < 20``,
``ttft<500ms``; bounds joined by commas must all hold. Limits are seconds (seconds per token for the metrics
that are per token), or end in ``ms`` or ``s``; the statistic is the mean where none is named. A limit that is
just reached is held.
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
"""The paper's, in seconds per token."""
MAX_CHARACTERS = 200
MAX_BOUNDS = 8
MAX_REJECTED = 0.01
"""Share of the requests that a run may reject and still meet an SLO by its statistics."""
EXAMPLE = "write one like 'normalized_latency<0.3', 'p95 jct<20s' or 'ttft<1.55,tpot<150ms'"


@dataclass(frozen=True, slots=True)
class Bound:
    """``statistic`` of ``metric`` is at most ``limit`` seconds (per token where the metric is)."""

    metric: str
    statistic: str
    limit: float

    def __str__(self) -> str:
        """As ``parse_slo`` reads it."""
        return f"{'' if self.statistic == 'mean' else self.statistic + ' '}{self.metric}<{self.limit:g}"

    def held_by(self, record: RequestRecord) -> bool:
        """By the request's own figure: the statistic counts only for its several inter-token gaps. An answer
        of one token has no time between tokens, and so none above the limit."""
        values = OF_REQUESTS[self.metric](record)
        if not values:
            return metric_called(self.metric).needs_two_tokens and record.output_tokens == 1
        if len(values) == 1:
            return values[0] <= self.limit
        gaps = Distribution.of(values)
        return gaps is not None and float(getattr(gaps, self.statistic)) <= self.limit


@dataclass(frozen=True, slots=True)
class SLO:
    """All of ``bounds``."""

    bounds: tuple[Bound, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.bounds))

    def attained_by(self, record: RequestRecord) -> bool:
        """Whether one request was answered in full and held every bound itself."""
        return record.ok and all(bound.held_by(record) for bound in self.bounds)


def rejects_too_many(share: float) -> bool:
    """Whether a run that rejected this share of its requests (0 to 1) misses every SLO."""
    return share > MAX_REJECTED


def attainment(records: Sequence[RequestRecord], slo: SLO) -> float | None:
    """Share of the requests that attained ``slo``, failed and rejected ones counted as missed; None of
    no requests."""
    return _attained(records, slo) / len(records) if records else None


def goodput(records: Iterable[RequestRecord], slo: SLO, duration: float) -> float:
    """Requests per second that attained ``slo``, over ``duration`` seconds; 0 for a run of no duration."""
    return _attained(records, slo) / duration if duration > 0.0 else 0.0


def parse_slo(text: str) -> SLO:
    """
    Raises:
        ValueError: it is no such text; says in a sentence what is wrong and shows how to write one.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"an SLO of {len(text)} characters is too long; {EXAMPLE}")
    bounds = tuple(_bound(part.strip()) for part in text.split(","))
    if len(bounds) > MAX_BOUNDS:
        raise ValueError(f"an SLO has at most {MAX_BOUNDS} bounds, not {len(bounds)}")
    named = [(bound.metric, bound.statistic) for bound in bounds]
    if len(set(named)) < len(named):
        raise ValueError(f"the SLO '{text}' bounds one figure twice")
    return SLO(bounds)


def _bound(text: str) -> Bound:
    if (match := _BOUND.fullmatch(text)) is None:
        raise ValueError(f"'{text}' is not a bound on a latency; {EXAMPLE}")
    metric, statistic = _figure(match["figure"].strip())
    return Bound(metric, statistic, _limit(match["limit"].strip(), text))


def _figure(text: str) -> tuple[str, str]:
    """The statistic stands before or after the metric, however they are joined: ``p95 jct``, ``jct.p95``."""
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
            f"'{text}' is no figure that an SLO can bound: give one of {', '.join(BOUNDED)}, "
            f"with one of {', '.join(STATISTICS)} before it if it is not the mean"
        )
    return metric


def _limit(text: str, bound: str) -> float:
    match = _LIMIT.fullmatch(text)
    limit = float(match["number"]) if match else math.nan
    if match is None or not 0.0 < limit < math.inf:
        raise ValueError(f"the limit in '{bound}' must be a number of seconds above 0, or of ms like '500ms'")
    return limit / 1000.0 if match["unit"].lower() == "ms" else limit


def _attained(records: Iterable[RequestRecord], slo: SLO) -> int:
    return sum(slo.attained_by(record) for record in records)
