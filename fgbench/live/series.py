"""A figure over the last minutes, and its drawing in one line of text. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

LONGEST = 600
"""Values kept: ten minutes at one a second."""
BLOCKS = "▁▂▃▄▅▆▇█"


class Series:
    """The last ``LONGEST`` values; None where there was none to be had."""

    def __init__(self) -> None:
        self._values: deque[float | None] = deque(maxlen=LONGEST)
        self._taken = 0

    def add(self, value: float | None) -> None:
        self._values.append(value)
        self._taken += 1

    def __len__(self) -> int:
        return len(self._values)

    @property
    def last(self) -> float | None:
        return self._values[-1] if self._values else None

    @property
    def most(self) -> float | None:
        return max((value for value in self._values if value is not None), default=None)

    def cells(self, width: int) -> list[float | None]:
        """All that is kept as at most ``width`` means over equally many values each.

        Whose mean a value goes into depends on when it came, not on how many came since: what is drawn
        shifts to the left and does not flicker.
        """
        per_cell = max(1, math.ceil(len(self._values) / max(1, width - 1)))
        first = self._taken - len(self._values)
        cells: dict[int, list[float]] = {}
        for place, value in enumerate(self._values, first):
            cell = cells.setdefault(place // per_cell, [])
            if value is not None:
                cell.append(value)
        means = [sum(cell) / len(cell) if cell else None for cell in cells.values()]
        return means[-width:] if width > 0 else []


def sparkline(values: Sequence[float | None]) -> str:
    """A column a value, from 0 at the bottom to the largest one at the top; a gap for None."""
    top = max((value for value in values if value is not None), default=0.0)
    return "".join(" " if value is None else _block(value, top) for value in values)


def _block(value: float, top: float) -> str:
    if top <= 0.0 or value <= 0.0:
        return BLOCKS[0]
    return BLOCKS[max(1, math.ceil(value / top * len(BLOCKS))) - 1]
