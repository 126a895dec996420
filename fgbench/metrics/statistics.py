"""Statistics of one sample, and over several seeds: the interval of a figure, the verdict on two. Pure.

The repeated unit is the run. Requests of one run share a queue, so they do not show how much another run
would differ. Therefore there are no intervals and no verdicts with fewer than ``MIN_SEEDS`` seeds.

**The interval of a figure** is a percentile bootstrap of the mean over the seeds. Its tails are widened for
small samples as in Hesterberg, "What Teachers Should Know About the Bootstrap" (2015): the variance of
resamples of n values is too small by a factor of (n - 1) / n, and quantiles must come from Student's t, not
from the normal distribution. Still, the interval cannot extend beyond the smallest and the largest seed. With
three seeds it contains the true mean in only three of four cases, with five seeds in nine of ten.

**A verdict** must not be wrong in one of four cases, so it does not use this interval. With the same seed,
two backends get the same requests at the same times. So the ratio is computed for each seed, and Student's t
on the logarithms tests whether the geometric mean of the ratios differs from 1. This interval is valid for
any number of seeds if the logarithms of the ratios are normally distributed. Verdicts are not corrected for
multiple tests: of twenty verdicts on equal backends, one is expected to report a difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from statistics import NormalDist
from typing import Literal

MIN_SEEDS = 3
CONFIDENCE = 0.95
RESAMPLES = 9999
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
        """The interval of the mean; None with fewer than ``MIN_SEEDS`` seeds."""
        return bootstrap_interval(self.values)


@dataclass(frozen=True, slots=True)
class PairedRatio:
    """The ratio of two backends' figures: the geometric mean of the ratios of each seed."""

    value: float
    seeds: int
    """Number of seeds that both backends have."""
    interval: Interval | None
    """None with fewer than ``MIN_SEEDS`` seeds."""

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
        return cls(math.exp(mean), len(logs), interval)

    def verdict(self, *, lower_is_better: bool) -> Verdict | None:
        """Return the verdict, or None with fewer than ``MIN_SEEDS`` seeds."""
        if self.interval is None:
            return None
        if self.interval.low <= 1.0 <= self.interval.high:
            return "not distinguishable"
        return "better" if (self.interval.high < 1.0) == lower_is_better else "worse"


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """Return a bootstrap interval for the mean of the distribution that ``values`` were drawn from.

    Returns None with fewer than ``MIN_SEEDS`` values. Resampling is seeded, so the result is deterministic.
    """
    return _bootstrap(tuple(values)) if len(values) >= MIN_SEEDS else None


@cache
def _bootstrap(values: tuple[float, ...]) -> Interval:
    """Compute the interval. Cached, since tables, pictures and files ask for the same figures."""
    import numpy as np

    n = len(values)
    widened = math.sqrt(n / (n - 1)) * _student(n)
    tail = NormalDist().cdf(-widened)
    drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    means = np.asarray(values, dtype=float)[drawn].mean(axis=-1)
    low, high = np.quantile(means, [tail, 1.0 - tail]).tolist()
    return Interval(low, high)


def student_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's interval for the mean of normally distributed values.

    Returns None with fewer than ``MIN_SEEDS`` values.
    """
    n = len(values)
    if n < MIN_SEEDS:
        return None
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half_width = _student(n) * math.sqrt(variance / n)
    return Interval(mean - half_width, mean + half_width)


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
