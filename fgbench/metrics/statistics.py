"""Statistics of one sample, and over several seeds: the interval of a figure, the verdict on two. Pure.

The repeated unit is the run. Requests of one run share a queue, so they do not show how much another run
would differ. Therefore there are no intervals and no verdicts with fewer than ``MIN_SEEDS`` seeds.

**The interval of a figure** is Student's t on the logarithms of the seeds' figures, because latencies are
skewed. If a figure is 0 for a seed, it is Student's t on the figures, and does not extend below 0. The
interval is for the typical seed: the median of the distribution over seeds.

**A verdict** is paired. With the same seed, two backends get the same requests at the same times. So the
ratio is computed for each seed, and Student's t on the logarithms tests whether the geometric mean of the
ratios differs from 1.

Both are valid for any number of seeds if the logarithms are normally distributed, and both need seeds that
differ: if every seed sends the same workload, they would only show how steady the machine is.

**Many verdicts** are corrected by Benjamini and Hochberg's method (1995): of all differences that a table
reports for one figure, at most one in twenty is expected to be due to chance. Intervals are not corrected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal

MIN_SEEDS = 3
CONFIDENCE = 0.95
SAME = 1e-12
"""Values whose relative standard error is smaller are the same, except for rounding."""
Verdict = Literal["better", "worse", "not distinguishable"]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean, extremes and percentiles of a sample, in the sample's unit.

    Percentiles interpolate linearly between order statistics (numpy's default, Hyndman and Fan's type 7):
    the p-th percentile of n sorted values is at position p / 100 * (n - 1).
    """

    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Distribution | None:
        """Return the distribution of the values that are not None, or None if there are none."""
        import numpy as np

        sample = np.array([value for value in values if value is not None], dtype=float)
        if sample.size == 0:
            return None
        p50, p90, p95, p99 = np.percentile(sample, [50, 90, 95, 99]).tolist()
        return cls(
            count=int(sample.size),
            mean=float(sample.mean()),
            min=float(sample.min()),
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
            max=float(sample.max()),
        )

    def to_dict(self) -> dict[str, float]:
        """Return plain values for JSON."""
        return asdict(self)


def jain_index(values: Sequence[float]) -> float | None:
    """Return Jain's fairness index, (sum x)^2 / (n sum x^2): 1 if all are equal, 1 / n if one has all.

    Returns None without values, or if all are zero.
    """
    squares = math.fsum(value * value for value in values)
    return math.fsum(values) ** 2 / (len(values) * squares) if squares > 0.0 else None


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The mean over seeds of one figure of a run."""

    values: tuple[float, ...]
    """The figure of each seed; at least one."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """Return the estimate, or None without values."""
        return cls(tuple(values)) if values else None

    @property
    def value(self) -> float:
        """The mean."""
        return math.fsum(self.values) / len(self.values)

    @property
    def interval(self) -> Interval | None:
        """The interval; None with fewer than ``MIN_SEEDS`` seeds, or if all figures are the same."""
        return figure_interval(self.values)


@dataclass(frozen=True, slots=True)
class PairedRatio:
    """The ratio of two backends' figures: the geometric mean of the ratios of each seed."""

    value: float
    seeds: int
    """Number of seeds that both backends have."""
    interval: Interval | None
    """None with fewer than ``MIN_SEEDS`` seeds, or if the ratio is the same for all seeds."""
    p_value: float | None = None
    """Probability of such a ratio or a more extreme one between equal backends; None without an interval."""

    @classmethod
    def of(cls, mine: Mapping[int, float], theirs: Mapping[int, float]) -> PairedRatio | None:
        """Return the ratio of figures given by seed, or None if no seed has two figures above 0."""
        logs = [
            math.log(mine[seed] / theirs[seed])
            for seed in sorted(mine.keys() & theirs.keys())
            if mine[seed] > 0.0 and theirs[seed] > 0.0
        ]
        if not logs:
            return None
        mean, around = math.fsum(logs) / len(logs), student_interval(logs)
        interval = None if around is None else Interval(math.exp(around.low), math.exp(around.high))
        return cls(math.exp(mean), len(logs), interval, _p_value(logs))

    def verdict(self, *, lower_is_better: bool, limit: float = 1.0 - CONFIDENCE) -> Verdict | None:
        """Return the verdict, or None without a p-value.

        Args:
            lower_is_better: Whether a smaller figure is better.
            limit: Largest p-value of a difference: that of ``largest_p`` for many verdicts.
        """
        if self.p_value is None:
            return None
        if self.p_value > limit:
            return "not distinguishable"
        return "better" if (self.value < 1.0) == lower_is_better else "worse"


def largest_p(p_values: Iterable[float]) -> float:
    """Return the largest p-value that counts as a difference, among all verdicts on one figure.

    Benjamini and Hochberg's method: the largest p(i) with p(i) <= i / m * 0.05, for m sorted p-values.
    Returns 0 if none is a difference.
    """
    ordered = sorted(p_values)
    passed = [p for i, p in enumerate(ordered, 1) if p <= i / len(ordered) * (1.0 - CONFIDENCE)]
    return max(passed, default=0.0)


def figure_interval(values: Sequence[float]) -> Interval | None:
    """Return the interval of a figure over seeds: see the module's docstring.

    Returns None with fewer than ``MIN_SEEDS`` values, or if all are the same.
    """
    if any(value <= 0.0 for value in values):
        plain = student_interval(values)
        return None if plain is None else Interval(max(0.0, plain.low), plain.high)
    logs = student_interval([math.log(value) for value in values])
    return None if logs is None else Interval(math.exp(logs.low), math.exp(logs.high))


def student_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's interval for the mean of normally distributed values.

    Returns None with fewer than ``MIN_SEEDS`` values, or if all are the same.
    """
    error = _standard_error(values)
    if error is None:
        return None
    mean, half_width = math.fsum(values) / len(values), _student(len(values)) * error
    return Interval(mean - half_width, mean + half_width)


def _p_value(logs: Sequence[float]) -> float | None:
    """Return the p-value of Student's test that the mean is 0; None if it cannot be tested."""
    error = _standard_error(logs)
    return (
        None
        if error is None
        else 1.0 - student_share(abs(math.fsum(logs) / len(logs)) / error, len(logs) - 1)
    )


def _standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None with too few values, or if all are the same."""
    n = len(values)
    if n < MIN_SEEDS:
        return None
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return error if error > SAME * max(1.0, *map(abs, values)) else None


@cache
def _student(n: int) -> float:
    """Return the half width of the interval of a mean of ``n`` values, in standard errors."""
    low, high = 0.0, 1e6
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if student_share(middle, n - 1) < CONFIDENCE else (low, middle)
    return high


def student_share(t: float, freedom: int) -> float:
    """Return the probability that Student's t with ``freedom`` degrees of freedom is in [-t, t].

    Exact for whole degrees of freedom: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total
