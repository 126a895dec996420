"""Finds the highest rate that meets an SLO, by bisection between a rate that met it and one that missed it.
Pure.

The next rate depends only on the probes so far, so a killed search can resume from its probes.

    search = Search(start=1.0)
    probes = []
    while (rate := search.next_rate(probes)) is not None:
        probes.append(Probe(rate, met=measure(rate)))
    Bracket.of(probes).rate
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEPS_UP, STEPS_DOWN = 6, 4
"""Maximum number of doublings and halvings to find a bracket. A halved rate takes twice as long to
measure."""
DIGITS = 4
"""Significant digits of a rate. Short rates are readable in folder names, and reproducible when a search
resumes.
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """One rate that was measured."""

    rate: float
    """Requests per second."""
    met: bool
    """Whether the rate met the SLO."""


@dataclass(frozen=True, slots=True)
class Search:
    """Settings of a search; chooses the next rate to measure."""

    start: float
    """First rate, in requests per second."""
    tolerance: float = 0.05
    """Target uncertainty of the result, as a share of it, in both directions."""
    max_probes: int = 16
    lowest: float = 0.0
    highest: float = math.inf
    """``lowest`` and ``highest`` limit the rates. By default the limits are 4 halvings and 6 doublings of
    ``start``."""

    def __post_init__(self) -> None:
        if not 0.0 < self.start < math.inf:
            raise ValueError(f"a search must start at a finite rate above 0, not {self.start}")
        if not 0.001 <= self.tolerance <= 1.0:
            raise ValueError(f"--tolerance must be between 0.001 and 1, not {self.tolerance}")
        if not 1 <= self.max_probes <= 100:
            raise ValueError(f"--max-probes must be between 1 and 100, not {self.max_probes}")
        if not self.lowest <= self.start <= self.highest:
            raise ValueError(
                f"the search starts at {self.start:g}/s, outside its own limits of {self.lowest:g}/s to "
                f"{self.highest:g}/s: give a first rate within them"
            )

    def next_rate(self, probes: Sequence[Probe]) -> float | None:
        """Return the next rate to measure after ``probes``.

        Returns None if the search has ended, with or without a result.
        """
        bracket = Bracket.of(probes)
        if len(probes) >= self.max_probes or bracket.within(self.tolerance):
            return None
        low, high = bracket.met, bracket.missed
        if low is None and high is None:
            return self.start
        if low is not None and high is not None:
            middle = _rounded(math.sqrt(low * high))
            return middle if low < middle < high else None  # no rate with 4 digits lies between them
        if low is not None:
            return _if_new(min(_rounded(low * 2.0), self._max_rate), low)
        assert high is not None
        return _if_new(max(_rounded(high / 2.0), self._min_rate), high)

    def steps_left(self, probes: Sequence[Probe]) -> int | None:
        """Return how many rates must still be measured; None if there is no bracket to halve yet."""
        bracket = Bracket.of(probes)
        if bracket.met is None or bracket.missed is None:
            return None
        width = math.log(bracket.missed / bracket.met)
        target = math.log((1.0 + self.tolerance) / (1.0 - self.tolerance)) if self.tolerance < 1.0 else width
        steps = math.ceil(math.log2(width / target)) if width > target else 0
        return min(steps, self.max_probes - len(probes))

    @property
    def _max_rate(self) -> float:
        return self.highest if math.isfinite(self.highest) else _rounded(self.start * 2.0**STEPS_UP)

    @property
    def _min_rate(self) -> float:
        return self.lowest if self.lowest > 0.0 else _rounded(self.start / 2.0**STEPS_DOWN)


@dataclass(frozen=True, slots=True)
class Bracket:
    """Two rates with the limit between them."""

    met: float | None
    """Highest rate that met the SLO; None if none did."""
    missed: float | None
    """Lowest rate that missed the SLO; None if none did."""

    @classmethod
    def of(cls, probes: Sequence[Probe]) -> Bracket:
        """Return the lowest rate that missed, and the highest rate below it that met.

        Probes may be in any order.
        """
        missed = min((probe.rate for probe in probes if not probe.met), default=None)
        below = [probe.rate for probe in probes if probe.met and (missed is None or probe.rate < missed)]
        return cls(max(below, default=None), missed)

    @property
    def found(self) -> bool:
        """Whether both rates are known."""
        return self.met is not None and self.missed is not None

    @property
    def rate(self) -> float | None:
        """The middle of the bracket, in requests per second. The limit is within ``uncertainty`` of it."""
        return (self.met + self.missed) / 2.0 if self.met is not None and self.missed is not None else None

    @property
    def uncertainty(self) -> float | None:
        """Half of the bracket's width, as a share of its middle."""
        if self.met is None or self.missed is None:
            return None
        return (self.missed - self.met) / (self.missed + self.met)

    def within(self, tolerance: float) -> bool:
        """Whether the uncertainty is known and at most ``tolerance``."""
        return self.uncertainty is not None and self.uncertainty <= tolerance


def _if_new(rate: float, tried: float) -> float | None:
    return rate if rate != tried else None


def _rounded(rate: float) -> float:
    return float(f"{rate:.{DIGITS}g}")
