"""Clocks: the engine asks one of these, never the operating system, so that a simulation can drive it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        ...


class WallClock:
    def now(self) -> float:
        return time.monotonic()


class VirtualClock:
    """Time that passes only when told to."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"time cannot go back by {-seconds} s")
        self._now += seconds

    def advance_to(self, moment: float) -> None:
        """Exactly to ``moment``, which the sum of a difference need not hit."""
        if moment < self._now:
            raise ValueError(f"time cannot go back by {self._now - moment} s")
        self._now = moment
