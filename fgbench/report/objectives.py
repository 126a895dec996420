"""What a comparison says of an SLO: how much load each backend takes within it. Pure.

Rates stand for the levels of the comparison's axis, which of closed loops is the concurrency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from statistics import fmean

from fgbench.metrics.crossing import Range, rate_at
from fgbench.metrics.slo import SLO, Bound, attainment, goodput, rejects_too_many
from fgbench.metrics.statistics import Estimate, PairedRatio
from fgbench.report.comparison import Comparison, ComparisonPoint, Entry, not_judged

TARGET = 0.95
"""Share of the requests that must attain an SLO, as in the paper's figure 13."""


@dataclass(frozen=True)
class Objective:
    """An SLO asked of every backend of a comparison. For rates, points that are not complete do not count."""

    slo: SLO
    comparison: Comparison

    def rate(self, label: str) -> Range | None:
        """The rate up to which a run meets the SLO by its statistics, of the means over seeds."""
        return self._rate({point.level: point.counted for point in self._complete(label)})

    def ratio(self, label: str) -> Range | None:
        """``rate`` over the baseline's; None for the baseline itself and where either has none."""
        mine, theirs = self.rate(label), self.rate(self.comparison.baseline)
        return mine.over(theirs) if mine and theirs and label != self.comparison.baseline else None

    def paired(self, label: str) -> PairedRatio | None:
        """The ratio seed by seed; None where a seed that both have crosses nothing that was measured, since
        leaving such seeds out would choose among them."""
        if label == self.comparison.baseline:
            return None
        mine, theirs = self._by_seed(label), self._by_seed(self.comparison.baseline)
        both = mine.keys() & theirs.keys()
        known = {seed: (mine[seed].exact, theirs[seed].exact) for seed in both}
        if any(None in pair for pair in known.values()):
            return None
        return PairedRatio.of(
            {seed: a for seed, (a, _) in known.items() if a}, {seed: b for seed, (_, b) in known.items() if b}
        )

    def verdict(self, label: str) -> str | None:
        """As ``Comparison.verdict``; None for the baseline, and where no ratio is known exactly."""
        ratio = self.paired(label)
        return None if ratio is None else ratio.verdict(lower_is_better=False) or not_judged(ratio.seeds)

    def met_by(self, point: ComparisonPoint) -> bool | None:
        """Whether the means over seeds meet the SLO; None where a figure is missing and no other broke it.

        A backend that rejected more than ``MAX_REJECTED`` of the requests misses it: its figures are only of
        those that it served.
        """
        if _rejects_too_many(point.counted):
            return False
        figures = [(_figure(point.counted, bound), bound.limit) for bound in self.slo.bounds]
        if any(value is not None and value > limit for value, limit in figures):
            return False
        return None if any(value is None for value, _ in figures) else True

    def attained_up_to(self, label: str) -> Range | None:
        """The rate up to which at least ``TARGET`` of the requests attain the SLO."""
        shares = [(point.level, self.attainment(point)) for point in self._complete(label)]
        return rate_at(((rate, 1.0 - share.value) for rate, share in shares if share), 1.0 - TARGET)

    def attainment(self, point: ComparisonPoint) -> Estimate | None:
        """Share of the requests, the mean over seeds."""
        shares = [self._attained[id(entry)][0] for entry in point.counted]
        return Estimate.of([share for share in shares if share is not None])

    def goodput(self, point: ComparisonPoint) -> Estimate | None:
        """Requests per second that attained the SLO, the mean over seeds."""
        return Estimate.of([self._attained[id(entry)][1] for entry in point.counted])

    @cached_property
    def _attained(self) -> dict[int, tuple[float | None, float]]:
        """Share and goodput of each entry, by its id."""
        return {
            id(entry): (
                attainment(entry.records, self.slo),
                goodput(entry.records, self.slo, entry.summary.duration_s),
            )
            for point in self.comparison.points
            for entry in point.entries
        }

    def _complete(self, label: str) -> list[ComparisonPoint]:
        return [point for point in self.comparison.of(label) if point.complete]

    def _by_seed(self, label: str) -> dict[int, Range]:
        """Each seed's own rate."""
        points = self._complete(label)
        found: dict[int, Range] = {}
        for seed in self.comparison.seeds:
            entries = {point.level: [e for e in point.counted if e.seed == seed] for point in points}
            if (rate := self._rate(entries)) is not None:
                found[seed] = rate
        return found

    def _rate(self, entries_by_rate: Mapping[float, Sequence[Entry]]) -> Range | None:
        """Where the first bound is crossed, or requests are rejected; None where one has no figures."""
        crossings = []
        for bound in self.slo.bounds:
            curve = [(rate, _figure(entries, bound)) for rate, entries in entries_by_rate.items()]
            crossings.append(
                rate_at([(rate, value) for rate, value in curve if value is not None], bound.limit)
            )
        known = [crossing for crossing in crossings if crossing is not None]
        return reduce(Range.and_below, known) if len(known) == len(self.slo.bounds) else None


def _rejects_too_many(entries: Sequence[Entry]) -> bool:
    """By the mean over seeds."""
    return bool(entries) and rejects_too_many(fmean(entry.summary.rejected_share for entry in entries))


def _figure(entries: Sequence[Entry], bound: Bound) -> float | None:
    """The mean over seeds; infinite where too many requests were rejected for any SLO to be met."""
    if _rejects_too_many(entries):
        return math.inf
    figures = [entry.figure(bound.metric, bound.statistic) for entry in entries]
    known = [value for value in figures if value is not None]
    return fmean(known) if known else None
