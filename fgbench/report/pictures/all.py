"""All the pictures of a comparison. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fgbench.report.comparison import Comparison
from fgbench.report.objectives import Objective
from fgbench.report.pictures.breakdown import breakdown
from fgbench.report.pictures.distributions import distributions
from fgbench.report.pictures.over_rate import attainment, latency
from fgbench.report.pictures.picture import Picture
from fgbench.report.pictures.queues import queues


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
    return [picture for picture in found if picture is not None]
