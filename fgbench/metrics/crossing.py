"""At which rate a figure that grows with the load reaches its limit. Pure.

The paper's headline is a ratio of such rates: those at which the mean normalized latency is 0.3 s per token.
The rate is found by linear interpolation between the two measured rates around the first crossing, which
gives back the ratios the paper printed for its own curves. Beyond what was measured nothing is guessed:
such a rate is only known to lie above the highest or below the lowest one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """A positive figure known exactly (``low == high``), or only to lie above ``low`` or below ``high``."""

    low: float
    high: float

    @property
    def exact(self) -> float | None:
        return self.low if self.low == self.high else None

    @property
    def is_known(self) -> bool:
        """Whether anything is known of it."""
        return self.low > 0.0 or self.high < math.inf

    def over(self, other: Range) -> Range:
        """The ratio, as far as both are known."""
        return Range(
            self.low / other.high if other.high > 0.0 else math.inf,
            self.high / other.low if other.low > 0.0 else math.inf,
        )

    def and_below(self, other: Range) -> Range:
        """The lesser of both."""
        return Range(min(self.low, other.low), min(self.high, other.high))

    def describe(self, unit: str = "") -> str:
        """``2.41/s``, ``> 4/s``, ``< 0.5/s`` or ``-``."""
        if self.exact is not None:
            return f"{self.low:.3g}{unit}"
        if self.low > 0.0 and self.high < math.inf:
            return f"{self.low:.3g} to {self.high:.3g}{unit}"
        if self.high < math.inf:
            return f"< {self.high:.3g}{unit}"
        return f"> {self.low:.3g}{unit}" if self.is_known else "-"


def rate_at(points: Iterable[tuple[float, float]], limit: float) -> Range | None:
    """The rate up to which a figure stays at or below ``limit``.

    Args:
        points: (rate, figure), in any order; rates that are not finite are left out. An infinite figure is
            one that is above any limit.
        limit: In the figure's unit.

    Returns:
        The rate of the first crossing, or what is known of it where the figure there is infinite; above the
        highest rate where the limit is never passed, below the lowest where it is passed from the start; None
        without points.
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
            found = below[0] + share * (rate - below[0])
            return Range(found, found)
        below = (rate, value)
    return Range(curve[-1][0], math.inf)
