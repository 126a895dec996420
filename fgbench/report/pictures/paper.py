"""Draws pictures with matplotlib, as PNG and PDF files."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fgbench.report.pictures.picture import STATE_COLOURS, Bars, Line, Panel, Picture, colour, variant
from fgengine.units import seconds

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))
"""Line styles of curves, which have no markers; they identify backends in greyscale print."""
STATE_HATCHES = {"queued": "//", "swapped": "xx", "prefill": "..", "decode": ""}
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType fonts: the PDF's text can be selected and searched
    "hatch.linewidth": 0.6,
}
SMALL: Any = {"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "lines.markersize": 4}
"""Changes to the style for a picture in a paper's column."""
MIN_PANEL_WIDTH = 2.2
"""Smallest width of a panel in inches, if the width of the picture is given."""
PictureFormat = Literal["png", "pdf", "svg"]
PANEL_WIDTH, NARROW_WIDTH, PANEL_HEIGHT, BAR_HEIGHT, LEGEND_ROW = 3.7, 3.1, 3.0, 0.42, 0.24
"""Sizes in inches. Panels are narrow if there are more than three in a row."""
MAX_OFFSET = 0.008
"""Maximum distance, as a share of the x axis, between the points of two backends at the same rate."""
CHARACTERS_PER_INCH = 14
LABEL_WIDTH = 32
MAX_TICKS = 6
DPI = 180
GREY = "#555555"
LEVEL: Any = (0, (4, 3))
"""Line style of ``Panel.level``."""


def write_pictures(
    pictures: Sequence[Picture],
    folder: Path,
    *,
    formats: Sequence[PictureFormat] = ("png", "pdf"),
    width: float | None = None,
) -> list[Path]:
    """Write each picture as ``folder``/NAME.png, NAME.pdf, ...; return the paths.

    Args:
        formats: The kinds of files.
        width: Width in inches, such as that of a paper's column. The text then has the size of a caption, and
            there is no title. None: as wide as the panels need.

        write_pictures(pictures_of(comparison, []), Path("figures"), formats=["pdf"], width=3.3)
    """
    import matplotlib

    paths = []
    with matplotlib.rc_context(STYLE if width is None else STYLE | SMALL):
        for picture in pictures:
            figure = _figure(picture, width)
            folder.mkdir(parents=True, exist_ok=True)
            for kind in formats:
                path = folder / f"{picture.name}.{kind}"
                if kind == "png":
                    _save_png(figure, path)
                else:
                    figure.savefig(path, dpi=DPI)
                figure.set_layout_engine("none")  # laid out once is enough, and takes long
                paths.append(path)
    return paths


def _save_png(figure: Figure, path: Path) -> None:
    """With 64 colours, of which these pictures need few: a third of the bytes."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(64).save(path, optimize=True, dpi=(DPI, DPI))


def _figure(picture: Picture, given_width: float | None = None) -> Figure:
    from matplotlib.figure import Figure

    handles = _legend(picture)
    columns = picture.columns
    if given_width is not None:
        columns = max(1, min(columns, int(given_width / MIN_PANEL_WIDTH)))
    rows = math.ceil(len(picture.panels) / columns)
    names = [_wrapped(bar.label) for bar in picture.bars]
    width = (PANEL_WIDTH if columns < 4 else NARROW_WIDTH) * max(columns, 2)
    width += max((len(line) for name in names for line in name.split("\n")), default=0) / CHARACTERS_PER_INCH
    width = given_width or width
    legend_columns = _legend_columns(handles, width)
    texts = [*([picture.title] if given_width is None else []), *picture.notes]
    title = textwrap.fill("; ".join(texts), int(0.85 * width * CHARACTERS_PER_INCH))
    height = rows * _panel_height(picture, names) + 0.7
    height += LEGEND_ROW * (math.ceil(len(handles) / legend_columns) + title.count("\n"))
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey="all" if names else "none").flatten()
    for axes, panel in zip(grid, picture.panels, strict=False):
        if isinstance(panel, Panel):
            _draw_lines(axes, panel, picture.labels)
        elif isinstance(panel, Bars):
            _draw_bars(axes, panel)
    for axes in grid[len(picture.panels) :]:
        axes.set_axis_off()
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=legend_columns)
    if title:
        figure.suptitle(title, fontsize=11 if given_width is None else 8)
    return figure


def _panel_height(picture: Picture, names: Sequence[str]) -> float:
    if not names:
        return PANEL_HEIGHT
    bars = len(names) // len(picture.panels)
    return 0.8 + max(BAR_HEIGHT, LEGEND_ROW * (1 + max(name.count("\n") for name in names))) * max(bars, 2)


def _legend_columns(handles: Sequence[Artist], width: float) -> int:
    """Return the number of columns that fit, reduced so that all rows have a similar length."""
    if not handles:
        return 1
    longest = max(len(str(handle.get_label())) for handle in handles)
    limit = max(1, min(len(handles), int(width * CHARACTERS_PER_INCH / (longest + 6))))
    return math.ceil(len(handles) / math.ceil(len(handles) / limit))


def _legend(picture: Picture) -> list[Artist]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if isinstance(picture.panels[0], Bars):
        used_states = {name for bar in picture.bars for name in bar.parts if bar.style is None}
        return [
            Patch(facecolor=fill, hatch=STATE_HATCHES[name], edgecolor="white", label=name)
            for name, fill in STATE_COLOURS.items()
            if name in used_states
        ]
    used = {(line.reference, line.style): line for line in picture.lines}
    handles: list[Artist] = [
        Line2D([], [], **_style(used[key]), label=_short(used[key].label)) for key in sorted(used)
    ]
    if any(any(line.hollow) for line in picture.lines):
        hollow: Any = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": GREY}
        handles.append(Line2D([], [], linestyle="none", **hollow, label="hollow: above capacity"))
    if any(any(line.intervals) for line in picture.lines):
        handles.append(Line2D([], [], color=GREY, marker="|", linestyle="none", label="95% over seeds"))
    if any(isinstance(panel, Panel) and panel.level is not None for panel in picture.panels):
        handles.append(Line2D([], [], color=GREY, linestyle=LEVEL, label=picture.level))
    return handles


def _style(line: Line) -> dict[str, Any]:
    style: dict[str, Any] = {"color": colour(line.style), "linewidth": 1.6}
    if line.reference:
        return style | {"linestyle": "--", "linewidth": 1.2}
    if not line.marked:
        return style | {"linestyle": DASHES[variant(line.style, len(DASHES))]}
    return style | {"marker": MARKERS[variant(line.style, len(MARKERS))], "markersize": 6.5}


def _draw_lines(axes: Axes, panel: Panel, labels: Sequence[str]) -> None:
    if panel.level is not None:
        axes.axhline(panel.level, color=GREY, linestyle=LEVEL, linewidth=1.2, zorder=1)
    offset = _offset(panel, len(labels)) if any(any(line.intervals) for line in panel.lines) else 0.0
    for line in panel.lines:
        style = _style(line)
        if line.reference or not line.marked:
            axes.plot(line.xs, line.ys, **style, drawstyle="steps-post" if panel.y_percent else "default")
            continue
        place = labels.index(line.label) if line.label in labels else 0
        xs = [_shifted(panel, x, offset * (place - (len(labels) - 1) / 2)) for x in line.xs]
        axes.plot(xs, line.ys, color=style["color"], linewidth=style["linewidth"], zorder=2)
        hollow = line.hollow or [False] * len(xs)
        for is_hollow, face in ((False, style["color"]), (True, "white")):
            some = [(x, y) for x, y, h in zip(xs, line.ys, hollow, strict=True) if h == is_hollow]
            axes.plot(*zip(*some, strict=True) if some else ((), ()), **style | _only_markers(face), zorder=4)
        known = [(x, *interval) for x, interval in zip(xs, line.intervals, strict=False) if interval]
        if known:
            at, lows, highs = zip(*known, strict=True)
            axes.vlines(at, lows, highs, color=style["color"], linewidth=1.4, zorder=3)
            axes.plot((*at, *at), (*lows, *highs), "_", color=style["color"], markersize=5, zorder=3)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.margins(x=0.06)
    _set_y(axes, panel)
    _set_x(axes, panel)


def _offset(panel: Panel, backends: int) -> float:
    """Return the distance between the points of two backends at one level, so that intervals do not overlap.

    It is a distance in x, or in log(x) if the axis is logarithmic.
    """
    xs = sorted({math.log(x) if panel.x_log else x for line in panel.lines for x in line.xs})
    gaps = [later - earlier for earlier, later in pairwise(xs)]
    return min(MAX_OFFSET * (xs[-1] - xs[0]), 0.5 * min(gaps) / backends) if gaps else 0.0


def _shifted(panel: Panel, x: float, offset: float) -> float:
    return x * math.exp(offset) if panel.x_log else x + offset


def _only_markers(face: str) -> dict[str, Any]:
    return {"linestyle": "none", "markerfacecolor": face, "markeredgewidth": 1.6}


def _set_y(axes: Axes, panel: Panel) -> None:
    low, high = panel.y_range
    if panel.y_percent:
        from matplotlib.ticker import PercentFormatter

        axes.set_ylim(0.0, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif panel.y_log:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.3)
        _plain_log(axes.yaxis, low, high)
    else:
        axes.set_ylim(0.0, 1.08 * high if high > 0.0 else 1.0)


def _set_x(axes: Axes, panel: Panel) -> None:
    low, high = panel.x_range
    if panel.x_log:
        axes.set_xscale("log")
        _plain_log(axes.xaxis, low, high)
        if _ticks_fit(panel):
            axes.set_xticks(list(panel.x_ticks), [f"{tick:g}" for tick in panel.x_ticks])
    elif panel.x_ticks:
        if _ticks_fit(panel):
            axes.set_xticks(list(panel.x_ticks), [f"{tick:g}" for tick in panel.x_ticks])
        if low == high:
            axes.set_xlim(low * 0.5, high * 1.5)
    elif panel.lines and not panel.lines[0].marked:
        axes.set_xlim(left=0.0)


def _ticks_fit(panel: Panel) -> bool:
    """Whether all measured levels can be ticks: there are few enough, and none is too close to another."""
    places = [math.log(tick) if panel.x_log else tick for tick in panel.x_ticks]
    near = 0.09 * (places[-1] - places[0]) if places else 0.0
    return 0 < len(places) <= MAX_TICKS and all(b - a > near for a, b in pairwise(places))


def _plain_log(axis: Any, low: float, high: float) -> None:
    """Put plain numbers at 1, 2 and 5 of each decade, so that a range within one decade has labels too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 100.0 else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_bars(axes: Axes, panel: Bars) -> None:
    names = [_wrapped(bar.label) for bar in panel.bars]
    places = list(range(len(names)))[::-1]
    longest = max(max(bar.total, bar.interval[1] if bar.interval else 0.0) for bar in panel.bars)
    for place, bar in zip(places, panel.bars, strict=True):
        left = 0.0
        for name, value in bar.parts.items():
            axes.barh(
                place,
                value,
                0.62,
                left=left,
                color=STATE_COLOURS[name] if bar.style is None else colour(bar.style),
                hatch=STATE_HATCHES[name] if bar.style is None else "",
                edgecolor="white",
                linewidth=0.4,
            )
            left += value
        if bar.interval is not None:
            axes.plot(bar.interval, (place, place), "|-", color=GREY, linewidth=1.2, markersize=6)
            left = max(left, bar.interval[1])
        axes.annotate(
            f"{seconds(bar.total)}{bar.mark}" if bar.parts else "unknown",
            (left, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(places, names)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0.0, 1.3 * longest if longest > 0.0 else 1.0)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_title(panel.title)
    axes.set_xlabel(panel.x)


def _wrapped(label: str) -> str:
    return textwrap.fill(label, LABEL_WIDTH)


def _short(label: str) -> str:
    """Return the label, shortened to fit in a legend."""
    return textwrap.shorten(label, 90, placeholder=" ...")
