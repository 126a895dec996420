"""All the pictures of a comparison. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fgbench.report.comparison import Comparison
from fgbench.report.objectives import Objective
from fgbench.report.pictures.breakdown import breakdown
from fgbench.report.pictures.distributions import distributions
from fgbench.report.pictures.over_rate import attainment, latency
from fgbench.report.pictures.picture import Picture
from fgbench.report.pictures.queues import queues

MOST_NAMED = 4
"""Points that other programs disturbed, in a picture's title."""


def pictures_of(comparison: Comparison, objectives: Sequence[Objective]) -> list[Picture]:
    """Those that there is something to draw for: of complete runs only."""
    found = (
        latency(comparison, objectives, "mean"),
        latency(comparison, objectives, "p95"),
        attainment(comparison, objectives),
        distributions(comparison),
        breakdown(comparison),
        queues(comparison),
    )
    disturbed = _disturbed(comparison)
    return [
        replace(picture, notes=[*picture.notes, disturbed]) if disturbed else picture
        for picture in found
        if picture is not None
    ]


def _disturbed(comparison: Comparison) -> str:
    """Which points other programs may have changed; empty: none."""
    found = [point for point in comparison.points if point.complete and point.disturbed]
    points = sorted(found, key=lambda point: (point.label, point.level))
    named = [f"{point.label} at {comparison.axis.say(point.level)}" for point in points]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    return f"measured beside other programs: {', '.join(named[:MOST_NAMED])}{more}" if named else ""
