"""A sample of numbers as the few that people compare. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass


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
