"""Distributions of lengths in tokens, and the syntax for them on the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.random import Generator

MAX_LENGTH = 1_000_000
"""Longest accepted prompt or output, in tokens."""
MAX_SIGMA = 5.0
ZIPF_RANGE = (0.0, 20.0)
GRAMMAR = "512 (fixed), 16-512 (uniform), lognormal:MEDIAN:SIGMA[:MAX] or zipf:EXPONENT:MAX"


class LengthDistribution(Protocol):
    """A distribution of lengths."""

    @property
    def name(self) -> str:
        """Short name, which can be part of a folder's name."""
        ...

    def draw(self, rng: Generator) -> int:
        """Draw a number of tokens, from 1 to ``MAX_LENGTH``."""
        ...


@dataclass(frozen=True, slots=True)
class Between:
    """Uniform distribution from ``low`` to ``high``, both inclusive; fixed if they are equal."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high <= MAX_LENGTH:
            raise ValueError(
                f"lengths must be ordered and between 1 and {MAX_LENGTH} tokens, not {self.low}-{self.high}"
            )

    @property
    def name(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"

    def draw(self, rng: Generator) -> int:
        return int(rng.integers(self.low, self.high, endpoint=True))


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Lognormal distribution with the given median, cut to at most ``max_length`` tokens.

    ``sigma`` is the standard deviation of the logarithm.
    """

    median: float
    sigma: float
    max_length: int = MAX_LENGTH

    def __post_init__(self) -> None:
        if not 1 <= self.median <= MAX_LENGTH:
            raise ValueError(
                f"the median of lognormal lengths must be between 1 and {MAX_LENGTH}, not {self.median:g}"
            )
        if not 0 < self.sigma <= MAX_SIGMA:
            raise ValueError(
                f"sigma of lognormal lengths must be above 0 and at most {MAX_SIGMA:g}, not {self.sigma:g}"
            )
        _check_longest(self.max_length)

    @property
    def name(self) -> str:
        longest = "" if self.max_length == MAX_LENGTH else f".{self.max_length}"
        return f"lognormal.{self.median:g}.{self.sigma:g}{longest}"

    def draw(self, rng: Generator) -> int:
        length = self.median * math.exp(self.sigma * rng.standard_normal())
        return max(1, min(self.max_length, round(length)))


@dataclass(frozen=True, slots=True)
class Zipf:
    """Zipf distribution of lengths k from 1 to ``max_length``: P(k) is proportional to ``k ** -exponent``."""

    exponent: float
    max_length: int
    _cumulative: Any = field(init=False, repr=False, compare=False, default=None)
    """Element k - 1: the probability of a length up to k."""

    def __post_init__(self) -> None:
        import numpy as np

        low, high = ZIPF_RANGE
        if not low < self.exponent <= high:
            raise ValueError(
                f"the exponent of zipf must be above {low:g} and at most {high:g}, not {self.exponent:g}"
            )
        _check_longest(self.max_length)
        weights = np.arange(1, self.max_length + 1, dtype=float) ** -self.exponent
        object.__setattr__(self, "_cumulative", weights.cumsum() / weights.sum())

    @property
    def name(self) -> str:
        return f"zipf.{self.exponent:g}.{self.max_length}"

    def draw(self, rng: Generator) -> int:
        return min(self.max_length, 1 + int(self._cumulative.searchsorted(rng.random(), side="right")))


def parse_lengths(text: str) -> LengthDistribution:
    """Parse a distribution, such as ``16-512``; ``GRAMMAR`` has the syntax.

    Raises ValueError if ``text`` does not follow the syntax.
    """
    kind, *numbers = text.split(":")
    try:
        if kind == "lognormal" and len(numbers) in (2, 3):
            longest = _integer(numbers[2]) if len(numbers) == 3 else MAX_LENGTH
            return Lognormal(_number(numbers[0]), _number(numbers[1]), longest)
        if kind == "zipf" and len(numbers) == 2:
            return Zipf(_number(numbers[0]), _integer(numbers[1]))
        if not numbers:
            low, dash, high = kind.partition("-")
            return Between(_integer(low), _integer(high if dash else low))
    except _NotANumber:
        pass
    raise ValueError(f"{text!r} is not a length: write {GRAMMAR}")


class _NotANumber(Exception):
    pass


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _NotANumber from None


def _integer(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise _NotANumber
    return int(text)


def _check_longest(longest: int) -> None:
    if not 1 <= longest <= MAX_LENGTH:
        raise ValueError(f"the longest length must be between 1 and {MAX_LENGTH} tokens, not {longest}")
