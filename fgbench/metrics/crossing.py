"""The rate at which a figure that grows with the load reaches its limit. Pure.

The FastServe paper's main result is a ratio of two such rates: those at which the mean normalized latency is
0.3 s per token. The rate is found by linear interpolation between the two measured rates around the first
crossing. Applied to the paper's own curves, this gives the ratios that the paper printed. There is no
extrapolation: outside the measured rates, the result only says "above the highest" or "below the lowest".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """A positive figure, known exactly (``low == high``) or only by a lower or upper bound."""

    low: float
    high: float

    @property
    def exact(self) -> float | None:
        """The figure if it is known exactly, else None."""
        return self.low if self.low == self.high else None

    @property
    def is_known(self) -> bool:
        """Whether there is a lower or an upper bound."""
        return self.low > 0.0 or self.high < math.inf

    def over(self, other: Range) -> Range:
        """Return the ratio ``self / other``, as far as both are known."""
        return Range(
            self.low / other.high if other.high > 0.0 else math.inf,
            self.high / other.low if other.low > 0.0 else math.inf,
        )

    def and_below(self, other: Range) -> Range:
        """Return the smaller of both."""
        return Range(min(self.low, other.low), min(self.high, other.high))

    def describe(self, unit: str = "") -> str:
        """Return text such as ``2.41/s``, ``> 4/s``, ``< 0.5/s`` or ``-``."""
        if self.exact is not None:
            return f"{self.low:.3g}{unit}"
        if self.low > 0.0 and self.high < math.inf:
            return f"{self.low:.3g} to {self.high:.3g}{unit}"
        if self.high < math.inf:
            return f"< {self.high:.3g}{unit}"
        return f"> {self.low:.3g}{unit}" if self.is_known else "-"


def rate_at(points: Iterable[tuple[float, float]], limit: float) -> Range | None:
    """Return the rate up to which a figure remains at or below ``limit``.

    Args:
        points: (rate, figure) in any order. Rates that are not finite are ignored. An infinite figure is
            above any limit.
        limit: In the figure's unit.

    Returns:
        - The rate of the first crossing; only its bounds if the figure after the crossing is infinite.
        - "Above the highest rate" if the figure never exceeds the limit.
        - "Below the lowest rate" if it exceeds the limit at every rate from the start.
        - None without points.
    """
    curve = sorted((rate, value) for rate, value in points if math.isfinite(rate))
    if not curve:
        return None
    below: tuple[float, float] | None = None
    for rate, value in curve:
        if value > limit:
            if below is None:
                return Range(0.0, rate)
            if math.isinf(value):  # nothing to interpolate with
                return Range(below[0], rate)
            share = (limit - below[1]) / (value - below[1])
            crossing = below[0] + share * (rate - below[0])
            return Range(crossing, crossing)
        below = (rate, value)
    return Range(curve[-1][0], math.inf)
