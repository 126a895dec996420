"""A sample summed up as it grows, in constant time and space: for what is shown while a run goes on. Pure.

What a run is judged by is computed from its records (``fgbench.metrics.summary``), not from this.
"""

from __future__ import annotations

import math

LEAST, MOST = 1e-6, 1e6
"""Values outside are counted at the end they lie beyond."""
GROWTH = 1.04
"""Between one bucket's bound and the next: a quantile is off by less than 2 %."""
_SCALE = 1.0 / math.log(GROWTH)
_BUCKETS = math.ceil(math.log(MOST / LEAST) * _SCALE) + 1


class Running:
    """Count, mean and quantiles of numbers >= 0; about 5 KB, however many they are."""

    __slots__ = ("_buckets", "count", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self._buckets = [0] * _BUCKETS
        """How many lay within a factor of ``GROWTH``, the first one's middle at ``LEAST``."""

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        if value <= LEAST:
            self._buckets[0] += 1
        else:
            self._buckets[min(_BUCKETS - 1, round(math.log(value / LEAST) * _SCALE))] += 1

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """The value that ``share`` (0 to 1) of the sample does not exceed; None where there is none."""
        if not self.count:
            return None
        rank = max(1, math.ceil(share * self.count))
        for index, count in enumerate(self._buckets):
            rank -= count
            if rank <= 0:
                return LEAST * GROWTH**index
        return MOST  # another thread is adding just now
