"""Evaluates an SLO on a comparison: the highest load at which each backend meets it. Pure.

"Rate" here means a level of the comparison's axis; in closed loops, that is the concurrency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from statistics import fmean

from fgbench.metrics.crossing import Range, rate_at
from fgbench.metrics.slo import SLO, Bound, attainment, goodput, rejects_too_many, window_goodput
from fgbench.metrics.statistics import Estimate, PairedRatio, largest_p
from fgbench.report.comparison import Comparison, ComparisonPoint, Entry, not_judged
from fgbench.report.marks import OVERLOADED

TARGET = 0.95
"""Share of the requests that must attain an SLO, as in the paper's figure 13."""


@dataclass(frozen=True)
class Objective:
    """An SLO applied to every backend of a comparison. Rates ignore points that are not complete."""

    slo: SLO
    comparison: Comparison

    def rate(self, label: str) -> Range | None:
        """Return the rate up to which the backend's runs meet the SLO, by means over seeds.

        None if a bound has no figures.
        """
        return self._rate({point.level: point.counted for point in self._complete(label)})

    def is_above_capacity(self, label: str) -> bool:
        """Whether the rate is, or may be, one at which the backend was above capacity."""
        rate = self.rate(label)
        levels = [point.level for point in self._complete(label) if OVERLOADED in point.marks]
        return rate is not None and bool(levels) and max(rate.low, 0.0) >= min(levels)

    def ratio(self, label: str) -> Range | None:
        """Return ``rate`` over the baseline's; None for the baseline itself, or if either has none."""
        mine, theirs = self.rate(label), self.rate(self.comparison.baseline)
        return mine.over(theirs) if mine and theirs and label != self.comparison.baseline else None

    def paired(self, label: str) -> PairedRatio | None:
        """Return the ratio of rates, paired by seed.

        Returns None if any seed has a rate that is not known exactly, because leaving out such seeds would
        bias the result. Also if the seeds repeat one workload.
        """
        if label == self.comparison.baseline:
            return None
        mine, theirs = self._by_seed(label), self._by_seed(self.comparison.baseline)
        both = mine.keys() & theirs.keys()
        known = {seed: (mine[seed].exact, theirs[seed].exact) for seed in both}
        if any(None in pair for pair in known.values()):
            return None
        if any(point.repeats_one_workload for point in self._complete(label)):
            return None
        return PairedRatio.of(
            {seed: a for seed, (a, _) in known.items() if a}, {seed: b for seed, (_, b) in known.items() if b}
        )

    def verdict(self, label: str) -> str | None:
        """Return the verdict on the ratio, like ``Comparison.verdict``; None if ``paired`` is None."""
        ratio = self.paired(label)
        if ratio is None:
            return None
        return ratio.verdict(lower_is_better=False, limit=self._largest_p) or not_judged(ratio.seeds)

    @cached_property
    def _largest_p(self) -> float:
        """The largest p-value that counts as a difference, among the ratios of all backends."""
        ratios = [self.paired(label) for label in self.comparison.labels]
        return largest_p(ratio.p_value for ratio in ratios if ratio and ratio.p_value is not None)

    def met_by(self, point: ComparisonPoint) -> bool | None:
        """Whether the means over seeds meet the SLO; None if a figure is missing and no other misses it.

        A backend that rejected more than ``MAX_REJECTED`` of the requests misses the SLO, since its figures
        cover only the requests that it served.
        """
        if _rejects_too_many(point.counted):
            return False
        figures = [(_figure(point.counted, bound), bound.limit) for bound in self.slo.bounds]
        if any(value is not None and value > limit for value, limit in figures):
            return False
        return None if any(value is None for value, _ in figures) else True

    def attained_up_to(self, label: str) -> Range | None:
        """Return the rate up to which at least ``TARGET`` of the requests attain the SLO."""
        shares = [(point.level, self.attainment(point)) for point in self._complete(label)]
        return rate_at(((rate, 1.0 - share.value) for rate, share in shares if share), 1.0 - TARGET)

    def attainment(self, point: ComparisonPoint) -> Estimate | None:
        """Return the share of the requests that attain the SLO, as a mean over seeds."""
        shares = [self._attained[id(entry)][0] for entry in point.counted]
        return Estimate.of([share for share in shares if share is not None])

    def goodput(self, point: ComparisonPoint) -> Estimate | None:
        """Return the requests per second that attain the SLO, as a mean over seeds."""
        return Estimate.of([self._attained[id(entry)][1] for entry in point.counted])

    def window_goodput(self, point: ComparisonPoint) -> Estimate | None:
        """Return the goodput while requests arrived, as a mean over seeds."""
        rates = [self._attained[id(entry)][2] for entry in point.counted]
        return Estimate.of([rate for rate in rates if rate is not None])

    @cached_property
    def _attained(self) -> dict[int, tuple[float | None, float, float | None]]:
        """Share, goodput, and goodput while requests arrived, of each entry, by the entry's ``id()``."""
        return {
            id(entry): (
                attainment(entry.records, self.slo),
                goodput(entry.records, self.slo, entry.summary.duration_s),
                window_goodput(entry.records, self.slo),
            )
            for point in self.comparison.points
            for entry in point.entries
        }

    def _complete(self, label: str) -> list[ComparisonPoint]:
        return [point for point in self.comparison.of(label) if point.complete]

    def _by_seed(self, label: str) -> dict[int, Range]:
        """Return the rate of each seed."""
        points = self._complete(label)
        found: dict[int, Range] = {}
        for seed in self.comparison.seeds:
            entries = {point.level: [e for e in point.counted if e.seed == seed] for point in points}
            if (rate := self._rate(entries)) is not None:
                found[seed] = rate
        return found

    def _rate(self, entries_by_rate: Mapping[float, Sequence[Entry]]) -> Range | None:
        """Return the rate at which the first bound is crossed, or too many requests are rejected.

        Returns None if a bound has no figures.
        """
        crossings = []
        for bound in self.slo.bounds:
            curve = [(rate, _figure(entries, bound)) for rate, entries in entries_by_rate.items()]
            crossings.append(
                rate_at([(rate, value) for rate, value in curve if value is not None], bound.limit)
            )
        known = [crossing for crossing in crossings if crossing is not None]
        return reduce(Range.and_below, known) if len(known) == len(self.slo.bounds) else None


def _rejects_too_many(entries: Sequence[Entry]) -> bool:
    """Whether too many requests were rejected, by the mean over seeds."""
    return bool(entries) and rejects_too_many(fmean(entry.summary.rejected_share for entry in entries))


def _figure(entries: Sequence[Entry], bound: Bound) -> float | None:
    """Return the mean over seeds; infinite if too many requests were rejected to meet any SLO."""
    if _rejects_too_many(entries):
        return math.inf
    figures = [entry.figure(bound.metric, bound.statistic) for entry in entries]
    known = [value for value in figures if value is not None]
    return fmean(known) if known else None
