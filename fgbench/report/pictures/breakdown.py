"""Where the time of a mean request went, by the server's account. Pure."""

from __future__ import annotations

from statistics import fmean

from fgbench.metrics.record import STATES
from fgbench.report.comparison import Comparison, Point
from fgbench.report.notes import marks, title
from fgbench.report.pictures.picture import Bar, Bars, Picture, picked


def breakdown(comparison: Comparison) -> Picture | None:
    """A panel for each load, a bar for each backend whose server accounts for its requests."""
    accounts = {
        (point.level, point.label): (point, parts)
        for point in comparison.points
        if point.complete and (parts := _parts(point))
    }
    if not accounts:
        return None
    labels = [label for label in comparison.labels if any(label == there for _, there in accounts)]
    levels = sorted({level for level, _ in accounts})
    shown = picked(levels)
    panels = []
    for level in shown:
        bars = []
        for label in labels:
            point, parts = accounts.get((level, label), (None, {}))
            bars.append(Bar(label, parts, marks(point) if point else ""))
        panels.append(Bars(comparison.axis.say(level), "mean seconds of a request", bars))
    notes = [f"{len(shown)} of {len(levels)} loads"] if len(shown) < len(levels) else []
    return Picture("breakdown", title(comparison), panels, len(panels), comparison.labels, notes=notes)


def _parts(point: Point) -> dict[str, float]:
    """Means over seeds, of the states that all of them account for."""
    accounts = [entry.breakdown.seconds for entry in point.counted if entry.breakdown is not None]
    return {
        state: fmean(account[state] for account in accounts)
        for state in STATES
        if accounts and all(state in account for account in accounts)
    }
