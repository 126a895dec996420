"""Distributions of lengths in tokens, and the small language in which the command line names them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.random import Generator

MAX_LENGTH = 1_000_000
"""Longest prompt or output accepted, tokens."""
MAX_SIGMA = 5.0
ZIPF_RANGE = (0.0, 20.0)
GRAMMAR = "512 (fixed), 16-512 (uniform), lognormal:MEDIAN:SIGMA[:MAX] or zipf:EXPONENT:MAX"


class LengthDistribution(Protocol):
    @property
    def name(self) -> str:
        """Short, fit for the name of a folder."""
        ...

    def draw(self, rng: Generator) -> int:
        """Tokens, from 1 to ``MAX_LENGTH``."""
        ...


@dataclass(frozen=True, slots=True)
class Between:
    """Every length from ``low`` to ``high`` is as likely as any other; both may be the same."""

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
    """Half are shorter than ``median``, and the logarithm's deviation is ``sigma``; cut to ``most``."""

    median: float
    sigma: float
    most: int = MAX_LENGTH

    def __post_init__(self) -> None:
        if not 1 <= self.median <= MAX_LENGTH:
            raise ValueError(
                f"the median of lognormal lengths must be between 1 and {MAX_LENGTH}, not {self.median:g}"
            )
        if not 0 < self.sigma <= MAX_SIGMA:
            raise ValueError(
                f"sigma of lognormal lengths must be above 0 and at most {MAX_SIGMA:g}, not {self.sigma:g}"
            )
        _check_most(self.most)

    @property
    def name(self) -> str:
        most = "" if self.most == MAX_LENGTH else f".{self.most}"
        return f"lognormal.{self.median:g}.{self.sigma:g}{most}"

    def draw(self, rng: Generator) -> int:
        length = self.median * math.exp(self.sigma * rng.standard_normal())
        return max(1, min(self.most, round(length)))


@dataclass(frozen=True, slots=True)
class Zipf:
    """Length k, from 1 to ``most``, with a probability proportional to ``k ** -exponent``."""

    exponent: float
    most: int
    _below: Any = field(init=False, repr=False, compare=False, default=None)
    """Probability of a length up to each one."""

    def __post_init__(self) -> None:
        import numpy as np

        low, high = ZIPF_RANGE
        if not low < self.exponent <= high:
            raise ValueError(
                f"the exponent of zipf must be above {low:g} and at most {high:g}, not {self.exponent:g}"
            )
        _check_most(self.most)
        weights = np.arange(1, self.most + 1, dtype=float) ** -self.exponent
        object.__setattr__(self, "_below", weights.cumsum() / weights.sum())

    @property
    def name(self) -> str:
        return f"zipf.{self.exponent:g}.{self.most}"

    def draw(self, rng: Generator) -> int:
        return min(self.most, 1 + int(self._below.searchsorted(rng.random(), side="right")))


def parse_lengths(text: str) -> LengthDistribution:
    """A distribution as ``GRAMMAR`` writes it. Raises ValueError for anything else."""
    kind, *numbers = text.split(":")
    try:
        if kind == "lognormal" and len(numbers) in (2, 3):
            most = _whole(numbers[2]) if len(numbers) == 3 else MAX_LENGTH
            return Lognormal(_number(numbers[0]), _number(numbers[1]), most)
        if kind == "zipf" and len(numbers) == 2:
            return Zipf(_number(numbers[0]), _whole(numbers[1]))
        if not numbers:
            low, dash, high = kind.partition("-")
            return Between(_whole(low), _whole(high if dash else low))
    except _NotANumber:
        pass
    raise ValueError(f"a length is {GRAMMAR}, not {text!r}")


class _NotANumber(Exception):
    pass


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise _NotANumber from None


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise _NotANumber
    return int(text)


def _check_most(most: int) -> None:
    if not 1 <= most <= MAX_LENGTH:
        raise ValueError(f"the longest length must be between 1 and {MAX_LENGTH} tokens, not {most}")
