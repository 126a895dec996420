"""Statistics of a sample, and of several seeds: an interval for a figure, and a verdict on two. Pure.

The unit that is repeated is the run. Requests of one run share a queue, so they do not tell how far
another run would come out elsewhere; nothing is therefore said of fewer than ``MIN_SEEDS`` seeds.

**A figure's interval** is a bootstrap of the mean over the seeds (percentile), its tails widened for small
samples as in Hesterberg, "What Teachers Should Know About the Bootstrap" (2015): resampling n values
spreads too little by n - 1 over n, and Student's t, not the normal distribution, is due. Even so it cannot
reach beyond the smallest and the largest seed: of three seeds it holds the true mean three times in four
only, of five nine times in ten.

**A verdict** must not be wrong one time in four, so it is not read off such an interval. For each seed two
backends got the same requests at the same moments, so their ratio is taken seed by seed, and Student's t
on the logarithms says whether the ratios' geometric mean differs from 1. Its interval holds at any number
of seeds, as far as logarithms of ratios are normally distributed. Each verdict stands for itself: of twenty
on backends that do not differ one is expected to say that they do.
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
    of n sorted values the p-th percentile stands at position p / 100 * (n - 1).
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
        """Values that are None are left out; None where nothing is left."""
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
        return asdict(self)


def jain_index(values: Sequence[float]) -> float | None:
    """Jain's fairness index, (sum x)^2 / (n sum x^2): 1 where all are equal, 1 / n where one has all.

    None of no values, or of zeros alone.
    """
    squares = math.fsum(value * value for value in values)
    return math.fsum(values) ** 2 / (len(values) * squares) if squares > 0.0 else None


@dataclass(frozen=True, slots=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The mean over seeds of one figure of a run."""

    values: tuple[float, ...]
    """Of each seed; at least one."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """None of no values."""
        return cls(tuple(values)) if values else None

    @property
    def value(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def interval(self) -> Interval | None:
        """None of fewer than ``MIN_SEEDS`` seeds."""
        return bootstrap_interval(self.values)


@dataclass(frozen=True, slots=True)
class PairedRatio:
    """The geometric mean over seeds of one backend's figure over another's."""

    value: float
    seeds: int
    """That both backends have."""
    interval: Interval | None
    """None of fewer than ``MIN_SEEDS`` seeds."""

    @classmethod
    def of(cls, mine: Mapping[int, float], theirs: Mapping[int, float]) -> PairedRatio | None:
        """From figures by seed; None where no seed has two figures above 0."""
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
        """None where there are too few seeds for one."""
        if self.interval is None:
            return None
        if self.interval.low <= 1.0 <= self.interval.high:
            return "not distinguishable"
        return "better" if (self.interval.high < 1.0) == lower_is_better else "worse"


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """For the mean of what ``values`` were drawn from; None of fewer than ``MIN_SEEDS``. Seeded."""
    return _bootstrap(tuple(values)) if len(values) >= MIN_SEEDS else None


@cache
def _bootstrap(values: tuple[float, ...]) -> Interval:
    """Remembered, since tables, pictures and files ask for the same figures."""
    import numpy as np

    n = len(values)
    widened = math.sqrt(n / (n - 1)) * _student(n)
    tail = NormalDist().cdf(-widened)
    drawn = np.random.default_rng(0).integers(0, n, (RESAMPLES, n))
    means = np.asarray(values, dtype=float)[drawn].mean(axis=-1)
    low, high = np.quantile(means, [tail, 1.0 - tail]).tolist()
    return Interval(low, high)


def student_interval(values: Sequence[float]) -> Interval | None:
    """For the mean of normally distributed ``values``; None of fewer than ``MIN_SEEDS``."""
    n = len(values)
    if n < MIN_SEEDS:
        return None
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    reach = _student(n) * math.sqrt(variance / n)
    return Interval(mean - reach, mean + reach)


@cache
def _student(n: int) -> float:
    """How many standard errors the interval of a mean of ``n`` values reaches."""
    low, high = 0.0, 1e6
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if student_share(middle, n - 1) < CONFIDENCE else (low, middle)
    return high


def student_share(t: float, freedom: int) -> float:
    """The probability that Student's t with so many degrees of freedom is between ``-t`` and ``t``.

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
