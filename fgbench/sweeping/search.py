"""The highest rate that meets an SLO, by bisection between a rate that met it and one that missed it. Pure.

What to try next follows from what was tried: a search that was killed goes on from the probes it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEPS_UP, STEPS_DOWN = 6, 4
"""Doublings and halvings before a bracket is given up. A halved rate takes twice as long to measure."""
DIGITS = 4
"""Significant digits of a rate that is tried: readable in folders' names, the same when a search goes on."""


@dataclass(frozen=True, slots=True)
class Probe:
    rate: float
    """Requests per second."""
    met: bool


@dataclass(frozen=True, slots=True)
class Search:
    start: float
    """The first rate tried, requests per second."""
    tolerance: float = 0.05
    """The limit is told to within this share of itself, either way."""
    max_probes: int = 16
    lowest: float = 0.0
    highest: float = math.inf
    """No rate outside these is tried; where they are left open, none beyond 4 halvings and 6 doublings."""

    def __post_init__(self) -> None:
        if not 0.0 < self.start < math.inf:
            raise ValueError(f"a search must start at a finite rate above 0, not {self.start}")
        if not 0.001 <= self.tolerance <= 1.0:
            raise ValueError(f"--tolerance must be between 0.001 and 1, not {self.tolerance}")
        if not 1 <= self.max_probes <= 100:
            raise ValueError(f"--max-probes must be between 1 and 100, not {self.max_probes}")
        if not self.lowest <= self.start <= self.highest:
            raise ValueError(f"the search starts at {self.start:g}/s, outside its own limits")

    def next_rate(self, probes: Sequence[Probe]) -> float | None:
        """The rate to try after ``probes``; None when the search has ended, well or not."""
        bracket = Bracket.of(probes)
        if len(probes) >= self.max_probes or bracket.within(self.tolerance):
            return None
        low, high = bracket.met, bracket.missed
        if low is None and high is None:
            return self.start
        if low is not None and high is not None:
            middle = _rounded(math.sqrt(low * high))
            return middle if low < middle < high else None  # nothing between them has so few digits
        if low is not None:
            return _if_new(min(_rounded(low * 2.0), self._most), low)
        assert high is not None
        return _if_new(max(_rounded(high / 2.0), self._least), high)

    def steps_left(self, probes: Sequence[Probe]) -> int | None:
        """Rates still to be tried; None while there is no bracket to halve."""
        bracket = Bracket.of(probes)
        if bracket.met is None or bracket.missed is None:
            return None
        width = math.log(bracket.missed / bracket.met)
        wanted = math.log((1.0 + self.tolerance) / (1.0 - self.tolerance)) if self.tolerance < 1.0 else width
        steps = math.ceil(math.log2(width / wanted)) if width > wanted else 0
        return min(steps, self.max_probes - len(probes))

    @property
    def _most(self) -> float:
        return self.highest if math.isfinite(self.highest) else _rounded(self.start * 2.0**STEPS_UP)

    @property
    def _least(self) -> float:
        return self.lowest if self.lowest > 0.0 else _rounded(self.start / 2.0**STEPS_DOWN)


@dataclass(frozen=True, slots=True)
class Bracket:
    """What is known of the limit: it lies between ``met`` and ``missed``; None where no probe was either."""

    met: float | None
    missed: float | None

    @classmethod
    def of(cls, probes: Sequence[Probe]) -> Bracket:
        """The lowest rate that missed, and the highest below it that met.

        A search never tries a rate above one that missed; probes from elsewhere may be in any order.
        """
        missed = min((probe.rate for probe in probes if not probe.met), default=None)
        below = [probe.rate for probe in probes if probe.met and (missed is None or probe.rate < missed)]
        return cls(max(below, default=None), missed)

    @property
    def found(self) -> bool:
        return self.met is not None and self.missed is not None

    @property
    def rate(self) -> float | None:
        """The middle of the bracket, requests per second: the limit is within ``uncertainty`` of it."""
        return (self.met + self.missed) / 2.0 if self.met is not None and self.missed is not None else None

    @property
    def uncertainty(self) -> float | None:
        """Half the bracket's width as a share of its middle."""
        if self.met is None or self.missed is None:
            return None
        return (self.missed - self.met) / (self.missed + self.met)

    def within(self, tolerance: float) -> bool:
        return self.uncertainty is not None and self.uncertainty <= tolerance


def _if_new(rate: float, tried: float) -> float | None:
    return rate if rate != tried else None


def _rounded(rate: float) -> float:
    return float(f"{rate:.{DIGITS}g}")
