"""Clocks. The engine reads time only from these, so that a simulation can control it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The interface of a clock."""

    def now(self) -> float:
        """Return the seconds since a fixed time. The value never decreases."""
        ...


class WallClock:
    """The operating system's monotonic clock."""

    def now(self) -> float:
        """Return the monotonic time in seconds."""
        return time.monotonic()


class SettableClock(Clock, Protocol):
    """A clock whose time a simulated device can set."""

    def advance_to(self, moment: float) -> None:
        """Return when the clock's time is ``moment`` or later."""
        ...


class RealTimeClock(WallClock):
    """The operating system's clock, for simulated devices in real time: it sleeps until a moment."""

    def advance_to(self, moment: float) -> None:
        """Sleep until ``moment``; return at once if it has passed."""
        while (seconds := moment - self.now()) > 0.0:
            time.sleep(seconds)


class VirtualClock:
    """A clock whose time changes only through ``advance`` and ``advance_to``."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        """Return the simulated time in seconds."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the time forward. Raises ValueError if ``seconds`` is negative."""
        if seconds < 0:
            raise ValueError(f"time cannot go back by {-seconds} s")
        self._now += seconds

    def advance_to(self, moment: float) -> None:
        """Set the time to exactly ``moment``; ``advance`` could miss it because of rounding.

        Raises ValueError if ``moment`` is in the past.
        """
        if moment < self._now:
            raise ValueError(f"time cannot go back by {self._now - moment} s")
        self._now = moment
