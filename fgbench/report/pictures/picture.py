"""What a picture holds, whoever draws it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MAX_PANELS = 5
"""Levels that get a panel of their own in a picture; of more, some are picked."""
LOG_ABOVE = 8.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""


@dataclass(frozen=True, slots=True)
class Line:
    label: str
    style: int
    """A backend's position among those of the comparison: the same colour and marker in every picture."""
    xs: Sequence[float]
    ys: Sequence[float]
    marked: bool = True
    """With a marker at every point; without it is a curve of many points."""
    hollow: Sequence[bool] = ()
    """Which points were measured above capacity; none where it is empty."""
    intervals: Sequence[tuple[float, float] | None] = ()
    """Of y, over seeds."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over one pair of axes."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    level: float | None = None
    """A horizontal line across all, such as an SLO."""
    x_ticks: Sequence[float] = ()
    x_log: bool = False
    y_log: bool = False
    y_percent: bool = False
    """y is a share, 0 to 1, all of which is shown."""

    @property
    def x_range(self) -> tuple[float, float]:
        xs = [x for line in self.lines for x in line.xs]
        return min(xs), max(xs)

    @property
    def y_range(self) -> tuple[float, float]:
        """Of all that must be seen."""
        ys = [y for line in self.lines for y in line.ys]
        ys += [end for line in self.lines for interval in line.intervals if interval for end in interval]
        ys += [] if self.level is None else [self.level]
        return min(ys), max(ys)


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    parts: dict[str, float]
    """By name, in the order in which they are stacked; empty: not known."""
    mark: str = ""
    """Behind its total."""

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Bars:
    """Stacked bars, seconds; the same labels in all of a picture."""

    title: str
    x: str
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class Picture:
    name: str
    """Of its file, without the ending."""
    title: str
    panels: Sequence[Panel | Bars]
    columns: int
    """Of panels; the rest are in rows below."""
    labels: Sequence[str]
    """Of all backends of the comparison, by style."""
    level: str = ""
    """What ``Panel.level`` stands for, in the legend."""
    notes: Sequence[str] = field(default=())
    """What the title's reader must know besides."""

    @property
    def lines(self) -> list[Line]:
        return [line for panel in self.panels if isinstance(panel, Panel) for line in panel.lines]

    @property
    def bars(self) -> list[Bar]:
        return [bar for panel in self.panels if isinstance(panel, Bars) for bar in panel.bars]


def is_wide(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis suits them."""
    return bool(values) and min(values) > 0.0 and max(values) > LOG_ABOVE * min(values)


def picked(levels: Sequence[float]) -> list[float]:
    """``MAX_PANELS`` of sorted levels, the first and the last among them, evenly spread over the others."""
    if len(levels) <= MAX_PANELS:
        return list(levels)
    step = (len(levels) - 1) / (MAX_PANELS - 1)
    return [levels[round(i * step)] for i in range(MAX_PANELS)]


"""Colours of backends and of a request's states, the same on paper and in the terminal."""

# Okabe and Ito's palette: told apart with every common colour blindness; yellow left out, too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
STATE_COLOURS = {"queued": "#E69F00", "swapped": "#CC79A7", "prefill": "#56B4E9", "decode": "#0072B2"}


def colour(style: int) -> str:
    return COLOURS[style % len(COLOURS)]
