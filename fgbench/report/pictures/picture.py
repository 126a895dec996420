"""The content of a picture, as plain values for any drawing backend. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MAX_PANELS = 5
"""Maximum number of levels with a separate panel in a picture; if there are more, some are picked."""
LOG_ABOVE = 8.0
"""An axis is logarithmic if the ratio of its largest to its smallest value is above this."""


@dataclass(frozen=True, slots=True)
class Line:
    """The points of one backend in a panel."""

    label: str
    style: int
    """Selects the colour and the marker, which are the same in every picture."""
    xs: Sequence[float]
    ys: Sequence[float]
    marked: bool = True
    """Whether every point has a marker. If not, it is a curve of many points."""
    reference: bool = False
    """Whether it was not measured here, such as a published curve: dashed, without markers."""
    hollow: Sequence[bool] = ()
    """For each point, whether it was measured above capacity; empty if none was."""
    intervals: Sequence[tuple[float, float] | None] = ()
    """For each point, the interval of y over seeds."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over one pair of axes."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    level: float | None = None
    """y of a horizontal line, such as an SLO."""
    x_ticks: Sequence[float] = ()
    x_log: bool = False
    y_log: bool = False
    y_percent: bool = False
    """y is a share; the axis shows 0 to 100%."""

    @property
    def x_range(self) -> tuple[float, float]:
        """Smallest and largest x."""
        xs = [x for line in self.lines for x in line.xs]
        return min(xs), max(xs)

    @property
    def y_range(self) -> tuple[float, float]:
        """Smallest and largest y, including intervals and ``level``."""
        ys = [y for line in self.lines for y in line.ys]
        ys += [end for line in self.lines for interval in line.intervals if interval for end in interval]
        ys += [] if self.level is None else [self.level]
        return min(ys), max(ys)


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of one backend, perhaps stacked of parts."""

    label: str
    parts: dict[str, float]
    """Lengths by name, in stacking order; empty if unknown."""
    mark: str = ""
    """Text after the total."""
    style: int | None = None
    """Style of the backend, for a bar with one part; None: the parts are states with their own colours."""
    interval: tuple[float, float] | None = None
    """Interval of the total over seeds."""

    @property
    def total(self) -> float:
        """Length of the bar."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Bars:
    """A panel of bars, in seconds. All panels of a picture have the same labels."""

    title: str
    x: str
    bars: Sequence[Bar]


@dataclass(frozen=True, slots=True)
class Picture:
    """A titled grid of panels."""

    name: str
    """File name without extension."""
    title: str
    panels: Sequence[Panel | Bars]
    columns: int
    """Number of panels in a row."""
    labels: Sequence[str]
    """All backends of the comparison, in order."""
    level: str = ""
    """Legend entry for ``Panel.level``."""
    notes: Sequence[str] = field(default=())
    """Texts after the title."""

    @property
    def lines(self) -> list[Line]:
        """Lines of all panels."""
        return [line for panel in self.panels if isinstance(panel, Panel) for line in panel.lines]

    @property
    def bars(self) -> list[Bar]:
        """Bars of all panels."""
        return [bar for panel in self.panels if isinstance(panel, Bars) for bar in panel.bars]


def is_wide(values: Sequence[float]) -> bool:
    """Whether the values need a logarithmic axis."""
    return bool(values) and min(values) > 0.0 and max(values) > LOG_ABOVE * min(values)


def picked(levels: Sequence[float]) -> list[float]:
    """Return at most ``MAX_PANELS`` of the sorted levels, evenly spaced, including the first and the last."""
    if len(levels) <= MAX_PANELS:
        return list(levels)
    step = (len(levels) - 1) / (MAX_PANELS - 1)
    return [levels[round(i * step)] for i in range(MAX_PANELS)]


"""Colours of backends and of a request's states, the same on paper and in the terminal."""

# Okabe and Ito's palette, which is safe for colour-blind readers. Yellow is left out: too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
STATE_COLOURS = {"queued": "#E69F00", "swapped": "#CC79A7", "prefill": "#56B4E9", "decode": "#0072B2"}


FAMILIES = (
    *("fcfs", "sj-mlfq", "vllm", "srpt", "mlfq", "vllm-chunked", "sprpt"),
    *("sjf", "vtc", "static", "sj-mlfq-artifact"),
)
"""Kinds of backends with a style of their own, which they have in every picture: the index is the style."""


MAX_STYLES = 1000
"""Number of backends of a picture that have no style of their own."""


def colour(style: int) -> str:
    """Return the colour of the backend with this style, such as ``#0072B2``."""
    return COLOURS[style % len(COLOURS)]


def variant(style: int, kinds: int) -> int:
    """Return which of several markers or dashes a style has.

    Styles of the same colour have different ones: with 7 colours and 7 markers, there are 49 styles.
    """
    return (style + style // len(COLOURS)) % kinds


def styles(families: Mapping[str, str | None]) -> dict[str, int]:
    """Return the style of each label, given the kind of its backend (None: it has no style of its own).

    The first backend of a kind gets the kind's style. The others get styles that no kind has, if possible of
    a colour that no other backend of the picture has.
    """
    found: dict[str, int] = {}
    for label, family in families.items():
        if family in FAMILIES and (style := FAMILIES.index(family)) not in found.values():
            found[label] = style
    for label in families:
        if label not in found:
            free = [i for i in range(len(FAMILIES), len(FAMILIES) + MAX_STYLES) if i not in found.values()]
            used = {colour(style) for style in found.values()}
            found[label] = next((i for i in free if colour(i) not in used), free[0])
    return {label: found[label] for label in families}
