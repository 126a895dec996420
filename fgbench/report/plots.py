"""Latency over rate as a figure, for the screen (PNG) and for print (PDF)."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgbench.report.comparison import Comparison, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    ("normalized_latency", "mean JCT / output token (s)"),
    ("ttft", "mean TTFT (s)"),
    ("jct", "mean JCT (s)"),
)
# Okabe and Ito's palette: told apart with every common colour blindness; yellow left out, too faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LOG_ABOVE = 8.0
"""Ratio of the largest to the smallest value from which a panel is drawn with a logarithmic y axis."""
MOST_RATE_TICKS = 6
"""Up to so many, the rates themselves are the ticks of the x axis."""
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # fonts as TrueType: text stays text in the PDF
}


def plot_latency_over_rate(comparison: Comparison, stem: Path) -> list[Path]:
    """Writes ``stem``.png and ``stem``.pdf: a panel for each of normalized latency, TTFT and JCT, a line for
    each backend, hollow markers where the load was above capacity. Runs that are not complete are left out,
    their means being those of the quick requests. Gives the paths; none where nothing is left to draw."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    drawn = [entry for entry in comparison.entries if entry.run.complete and math.isfinite(entry.rate)]
    if not drawn:
        return []
    comparison = replace(comparison, entries=tuple(drawn))
    with matplotlib.rc_context(STYLE):
        picture = Figure(figsize=(11.0, 4.4), layout="constrained")
        for axes, (metric, name) in zip(picture.subplots(1, len(PANELS)), PANELS, strict=True):
            _draw_panel(axes, comparison, metric)
            axes.set_title(name)
            axes.set_xlabel("offered rate (requests / s)")
        handles = [
            Line2D([], [], color=colour, marker=marker, label=label)
            for label, colour, marker in _styles(comparison)
        ]
        if any(entry.summary.overloaded for entry in comparison.entries):
            handles.append(
                Line2D(
                    [],
                    [],
                    linestyle="none",
                    marker="o",
                    markerfacecolor="white",
                    markeredgecolor="#555555",
                    label="hollow: above capacity",
                )
            )
        picture.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))
        picture.suptitle(comparison.workload.describe(), fontsize=11)
        stem.parent.mkdir(parents=True, exist_ok=True)
        paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "pdf")]
        for path in paths:
            picture.savefig(path, dpi=180)
    return paths


def _styles(comparison: Comparison) -> list[tuple[str, str, str]]:
    return list(zip(comparison.labels, cycle(COLOURS), cycle(MARKERS), strict=False))


def _draw_panel(axes: Axes, comparison: Comparison, metric: str) -> None:
    drawn: list[float] = []
    for label, colour, marker in _styles(comparison):
        points = sorted(
            (entry.rate, value, entry.summary.overloaded)
            for entry in comparison.entries
            if entry.label == label and (value := figure(entry.summary, metric)) is not None
        )
        rates = [rate for rate, _, _ in points]
        values = [value for _, value, _ in points]
        axes.plot(rates, values, color=colour, linewidth=1.6, zorder=2)
        for rate, value, overloaded in points:
            axes.plot(
                rate,
                value,
                marker=marker,
                markersize=7,
                color=colour,
                markerfacecolor="white" if overloaded else colour,
                markeredgewidth=1.6,
                zorder=3,
            )
        drawn += values
    if drawn and min(drawn) > 0.0 and max(drawn) / min(drawn) > LOG_ABOVE:
        _logarithmic(axes, min(drawn), max(drawn))
    else:
        axes.set_ylim(0.0, 1.08 * max(drawn, default=1.0))
    axes.margins(x=0.06)
    if len(comparison.rates) <= MOST_RATE_TICKS:
        axes.set_xticks(comparison.rates, [f"{rate:g}" for rate in comparison.rates])


def _logarithmic(axes: Axes, low: float, high: float) -> None:
    """Plain numbers at 1, 2 and 5 of each decade, so that a range within one decade has labels too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.set_ylim(low / 1.3, high * 1.3)
    wide = high / low > 300.0
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
