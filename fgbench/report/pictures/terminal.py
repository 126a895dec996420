"""Draws pictures as text, with plotext's canvas."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fgbench.report.pictures.picture import STATE_COLOURS, Bars, Line, Panel, Picture, colour, variant
from fgengine.units import number, seconds

if TYPE_CHECKING:
    from rich.text import Text

MARKERS = "●■◆▼★✚✖"
HOLLOW = "○□◇▽☆✛✕"
STATE_FILLS = {"queued": "░", "swapped": "▒", "prefill": "▓", "decode": "█"}
HEIGHT, MIN_WIDTH, MAX_WIDTH = 16, 40, 110
MARKS_ON_A_CURVE = 6
MARGIN = 0.04
"""Margin on each side as a share of the range, so that no point lies on the frame."""


def drawn(picture: Picture, width: int) -> Iterator[Text]:
    """Yield the parts of the picture from top to bottom, at most ``width`` columns wide (but at least 40)."""
    from rich.text import Text

    width = max(MIN_WIDTH, min(width, MAX_WIDTH))
    yield Text("; ".join([picture.title, *picture.notes]), style="bold")
    for panel in picture.panels:
        if isinstance(panel, Panel):
            yield _lines(panel, width)
        elif isinstance(panel, Bars):
            yield from _bars(panel, width)
    yield _legend(picture)


def _lines(panel: Panel, width: int) -> Text:
    import plotext
    from rich.text import Text

    x_scale, y_scale = _scale(panel.x_log), _scale(panel.y_log)
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(width, HEIGHT)
    figure.title(f"{panel.title}: {panel.y}" if panel.y else panel.title)
    figure.label(panel.x, "x")
    low, high = (0.0, 1.0) if panel.y_percent else panel.y_range
    low = low if panel.y_log else 0.0
    left, right = panel.x_range

    def draw(xs: Sequence[float], ys: Sequence[float], sign: str, code: str | None, joined: bool) -> None:
        pixel = plotext.pixel(None if code is None else _rgb(code))
        signal = figure.signal(
            list(map(x_scale, xs)), list(map(y_scale, ys)), marker=plotext.marker(sign, pixel)
        )
        if joined:
            signal.lines()
        figure.draw(signal)

    if panel.level is not None:
        draw([left, right], [panel.level] * 2, "·", None, joined=True)
    for line in panel.lines:
        draw(line.xs, line.ys, "braille", colour(line.style), joined=True)
    for line in panel.lines:
        for i in _marked(line):
            x, y = line.xs[i], line.ys[i]
            if interval := (line.intervals[i] if line.intervals else None):
                draw([x, x], interval, "│", colour(line.style), joined=True)
            signs = HOLLOW if line.hollow and line.hollow[i] else MARKERS
            draw([x], [y], signs[variant(line.style, len(signs))], colour(line.style), joined=False)
    _ruler(figure.ruler("y"), low, high, panel.y_log, "%" if panel.y_percent else "")
    _ruler(figure.ruler("x"), left, right, panel.x_log, "")
    return Text.from_ansi(figure.build().string())


def _marked(line: Line) -> range:
    """Return the indices of the points with markers.

    A curve has only a few markers, at a different place for each backend. They identify it without colours.
    """
    if line.reference:
        return range(0)
    if line.marked:
        return range(len(line.xs))
    apart = max(1, len(line.xs) // MARKS_ON_A_CURVE)
    return range(apart * (line.style % len(MARKERS) + 1) // (len(MARKERS) + 1), len(line.xs), apart)


def _ruler(ruler: Any, low: float, high: float, log: bool, unit: str) -> None:
    scale = _scale(log)
    start, end = scale(low), scale(high)
    margin = MARGIN * (end - start) or 0.5
    ruler.lim(start if start == 0.0 and not log else start - margin, end + margin)
    ticks = (
        _decades(low, high) if log else [low + (high - low) * i / 4 for i in range(5 if high > low else 1)]
    )
    shown = [f"{tick:.0%}" if unit else number(tick) for tick in ticks]
    ruler.ticks(list(map(scale, ticks)), shown)


def _decades(low: float, high: float) -> list[float]:
    """Return ticks at 1, 2 and 5 of each decade in the range; for a wide range, only at 1."""
    steps = (1.0,) if high > 100.0 * low else (1.0, 2.0, 5.0)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [step * 10.0**k for k in range(first, last + 1) for step in steps if low <= step * 10.0**k <= high]


def _scale(log: bool) -> Any:
    return math.log10 if log else float


def _bars(panel: Bars, width: int) -> Iterator[Text]:
    from rich.text import Text

    names = min(max(len(bar.label) for bar in panel.bars), width // 3)
    available = width - names - 13
    longest = max(bar.total for bar in panel.bars) or 1.0
    yield Text(f"\n{panel.title}: {panel.x}", style="bold")
    for bar in panel.bars:
        label = bar.label if len(bar.label) <= names else f"...{bar.label[3 - names :]}"
        line = Text(f"{label:>{names}} ")
        end = 0.0
        for name, value in bar.parts.items():
            begin, end = end, end + value
            cells = round(available * end / longest) - round(available * begin / longest)
            fill, shade = STATE_FILLS.get(name, "█"), STATE_COLOURS.get(name, "")
            line.append(fill * cells, style=shade if bar.style is None else colour(bar.style))
        line.append(f" {seconds(bar.total)}{bar.mark}" if bar.parts else "-")
        yield line


def _legend(picture: Picture) -> Text:
    from rich.text import Text

    legend = Text()
    if isinstance(picture.panels[0], Bars):
        states = any(bar.style is None for bar in picture.bars)
        for name, fill in STATE_FILLS.items() if states else ():
            legend.append(f"{fill} {name}  ", style=STATE_COLOURS[name])
        return legend
    used = {(line.reference, line.style): line for line in picture.lines}
    for (reference, style), line in sorted(used.items()):
        sign = "-" if reference else MARKERS[variant(style, len(MARKERS))]
        legend.append(f"{sign} {line.label}  ", style=colour(style))
    if any(any(line.hollow) for line in picture.lines):
        legend.append("hollow: above capacity  ", style="dim")
    if any(any(line.intervals) for line in picture.lines):
        legend.append("│ 95% over seeds  ", style="dim")
    if picture.level:
        legend.append(f"··· {picture.level}", style="dim")
    return legend


def _rgb(code: str) -> tuple[int, ...]:
    return tuple(int(part, 16) for part in re.findall("[0-9a-fA-F]{2}", code))
