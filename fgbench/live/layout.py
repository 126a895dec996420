"""The elements of live panels: lines of text that fit a given width."""

from __future__ import annotations

import math
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from rich.panel import Panel
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

GAP = "   "
MAX_WIDTH = 120
"""Maximum width of a panel, in columns."""
LABEL = 9
"""Width of a gauge's label, in columns."""
EIGHTHS = " ▏▎▍▌▋▊▉"
ASCII = str.maketrans("▁▂▃▄▅▆▇█▏▎▍▌▋▊▉░·µ─…", "_.:-=+*#...####.|u-.")
"""Replacements for terminals that only show ASCII."""


def clean(text: str, limit: int = 200) -> str:
    """Return ``text`` as one line of at most ``limit`` characters, without control characters."""
    shown = "".join(c if c.isprintable() else " " for c in text[: 4 * limit])
    shown = "".join(c for c in shown if unicodedata.category(c) != "Cf")
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def figure(label: str, value: str, style: str = "bold") -> Text:
    """Return ``label value``. Text from a server must be passed through ``clean`` first."""
    return Text.assemble((f"{label} ", "dim"), (value, style))


def flow(parts: Iterable[Text], width: int) -> list[Text]:
    """Put the parts on as many lines as they need, without splitting a part."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + len(GAP) + part.cell_len <= width:
            lines[-1].append(GAP).append_text(part)
        else:
            lines.append(part.copy())
    return lines


def bar(share: float, width: int, style: str = "cyan") -> Text:
    """Return a bar that fills ``share`` (0 to 1) of ``width`` columns, in steps of an eighth of a column."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    if share > 0:
        eighths = max(1, eighths)
    full, part = divmod(eighths, 8)
    drawn = "█" * full + (EIGHTHS[part] if part else "")
    return Text.assemble((drawn, style), ("░" * (width - len(drawn)), "dim"))


def gauge(label: str, share: float, value: str, width: int, style: str = "cyan") -> Text:
    """Return ``label ████░░ value`` with ``width`` columns; the value is never cut."""
    return Text.assemble(
        (f"{label:<{LABEL}} ", "dim"),
        bar(share, max(4, width - max(LABEL, len(label)) - len(value) - 2), style),
        (f" {value}", "bold"),
    )


def trend(label: str, value: str, series: Series, width: int, style: str = "green") -> Text:
    """Return ``label value ▁▂▃``: the current value and a curve of earlier values."""
    remaining = width - 20 - 20
    text = Text.assemble((f"{label:<19} ", "dim"), (f"{value:<19} ", "bold"))
    if remaining >= 8:
        text.append(sparkline(series.cells(remaining)), style)
    return text


def rule(title: str, width: int) -> Text:
    """Return a title with a horizontal line after it."""
    return Text(f"{title} ".ljust(width, "─"), style="dim")


class Lines:
    """A panel that adapts to the current size of the terminal.

    ``sections`` takes the available width and returns groups of lines, from top to bottom, each with a rank.
    If the terminal is too low, groups are left out, those with the highest rank first.
    """

    def __init__(
        self,
        title: str,
        sections: Callable[[int], Sequence[tuple[int, list[Text]]]],
        subtitle: str = "",
        height: int | None = None,
    ) -> None:
        """``height``: available lines; None: the height of the terminal."""
        self._title, self._subtitle, self._sections, self._height = title, subtitle, sections, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(MAX_WIDTH, options.max_width)
        height = (self._height or (console.size.height if console.is_terminal else 1000)) - 2
        groups = list(self._sections(max(20, width - 4)))
        while len(groups) > 1 and sum(len(lines) for _, lines in groups) > height:
            groups.remove(max(groups, key=lambda group: group[0]))
        shown = Text("\n").join(line for _, lines in groups for line in lines[: max(1, height)])
        shown.no_wrap, shown.overflow = True, "ellipsis"
        title, subtitle = Text(self._title, style="bold"), Text(self._subtitle, style="dim")
        if options.ascii_only:
            for text in (shown, title, subtitle):
                text.plain = text.plain.translate(ASCII).encode("ascii", "replace").decode()
        yield Panel(
            shown,
            title=title,
            title_align="left",
            subtitle=subtitle if self._subtitle else None,
            subtitle_align="right",
            width=width,
            border_style="dim",
        )


MAX_VALUES = 600
"""Number of stored values: ten minutes with one value per second."""
BLOCKS = "▁▂▃▄▅▆▇█"


class Series:
    """The last ``MAX_VALUES`` values; None for a missing value."""

    def __init__(self) -> None:
        self._values: deque[float | None] = deque(maxlen=MAX_VALUES)
        self._added = 0

    def add(self, value: float | None) -> None:
        """Add a value; None: it is missing."""
        self._values.append(value)
        self._added += 1

    def __len__(self) -> int:
        return len(self._values)

    @property
    def last(self) -> float | None:
        """The newest value; None if it is missing."""
        return self._values[-1] if self._values else None

    @property
    def maximum(self) -> float | None:
        """The largest stored value; None if there is none."""
        return max((value for value in self._values if value is not None), default=None)

    def cells(self, width: int) -> list[float | None]:
        """Return at most ``width`` means, each over the same number of values.

        Which mean a value belongs to depends only on its position, not on the number of later values. So a
        curve moves to the left and does not flicker.
        """
        per_cell = max(1, math.ceil(len(self._values) / max(1, width - 1)))
        first = self._added - len(self._values)
        cells: dict[int, list[float]] = {}
        for place, value in enumerate(self._values, first):
            cell = cells.setdefault(place // per_cell, [])
            if value is not None:
                cell.append(value)
        means = [sum(cell) / len(cell) if cell else None for cell in cells.values()]
        return means[-width:] if width > 0 else []


def sparkline(values: Sequence[float | None]) -> str:
    """Return one character per value, from 0 (lowest) to the largest value (highest); a space for None."""
    top = max((value for value in values if value is not None), default=0.0)
    return "".join(" " if value is None else _block(value, top) for value in values)


def _block(value: float, top: float) -> str:
    if top <= 0.0 or value <= 0.0:
        return BLOCKS[0]
    return BLOCKS[max(1, math.ceil(value / top * len(BLOCKS))) - 1]
