"""Where the time of a mean request went, by the server's account. Pure."""

from __future__ import annotations

from statistics import fmean

from fgbench.metrics.breakdown import STATES
from fgbench.report.comparison import Comparison, Point
from fgbench.report.notes import marks, rate_name, title
from fgbench.report.pictures.picture import Bar, Bars, Picture, picked

COLUMNS = 2


def breakdown(comparison: Comparison) -> Picture | None:
    """A panel for each rate, a bar for each backend whose server accounts for its requests."""
    panels = []
    for rate in comparison.rates:
        bars = [
            Bar(f"{point.label}{marks(point)}", parts)
            for point in comparison.at(rate)
            if point.complete and (parts := _parts(point))
        ]
        if bars:
            panels.append((rate, Bars(rate_name(rate), "seconds of a request, mean", bars)))
    if not panels:
        return None
    chosen = picked([rate for rate, _ in panels])
    shown = [bars for rate, bars in panels if rate in chosen]
    notes = [f"{len(shown)} of {len(panels)} rates"] if len(shown) < len(panels) else []
    return Picture(
        "breakdown", title(comparison), shown, min(COLUMNS, len(shown)), comparison.labels, notes=notes
    )


def _parts(point: Point) -> dict[str, float]:
    """Means over seeds, of the states that all of them account for."""
    accounts = [entry.breakdown.seconds for entry in point.counted if entry.breakdown is not None]
    return {
        state: fmean(account[state] for account in accounts)
        for state in STATES
        if accounts and all(state in account for account in accounts)
    }
