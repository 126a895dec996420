"""Time that is given out and kept to: whoever works asks what is left."""

from __future__ import annotations

import time
from collections.abc import Callable


class Allowance:
    """Seconds from now on."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds; below 0 once they are spent."""
        return self._ends - self._clock()

    def enough_for(self, seconds: float) -> bool:
        return self.left >= seconds

    def part(self, seconds: float) -> Allowance:
        """So much of it, or what is left."""
        return Allowance(min(seconds, self.left), self._clock)
