"""How far a sweep is and how long the rest takes, above each load's own progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fgbench.sweeping.estimate import Pace
from fgbench.units import clock

if TYPE_CHECKING:
    from rich.console import RenderableType


class Total:
    """Told when points begin and end; all else is asked of it."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._pace = Pace()
        self._began = self._point_began = now()
        self._foretold: float | None = None
        self._left: float | None = None
        self._place = self._title = ""
        self._share = 0.0

    def begin(
        self, place: str, title: str, share: float, foretold: float | None, after: Sequence[float | None]
    ) -> None:
        """A point at ``place`` ("point 3 of 12"), ``share`` of all being behind it; seconds foretold for it
        and those ``after``."""
        self._place, self._title, self._share = place, title, share
        self._point_began = self._now()
        self._foretold = foretold
        self._left = self._pace.left([foretold, *after])

    def end(self) -> float:
        """Seconds the point took."""
        seconds = self._now() - self._point_began
        self._pace.took(seconds, self._foretold)
        return seconds

    def line(self) -> str:
        """``point 3 of 12: fastgen, 1.5/s, seed 0; 2:05 gone, about 12:30 left``."""
        return f"{self._place}: {self._title}; {self._times()}"

    def header(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text(self._place, style="bold"),
            ProgressBar(total=1.0, completed=self._share, width=40),
            Text(self._times()),
        )
        return row

    def _times(self) -> str:
        gone = f"{clock(self._now() - self._began)} gone"
        if self._left is None:
            return gone
        return f"{gone}, about {clock(max(0.0, self._left - (self._now() - self._point_began)))} left"
