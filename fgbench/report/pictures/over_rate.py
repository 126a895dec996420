"""Latencies and SLO attainment over the offered rate. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fgbench.metrics.seeds import Estimate
from fgbench.report.comparison import Comparison, Point
from fgbench.report.notes import title
from fgbench.report.objectives import TARGET, Objective
from fgbench.report.pictures.picture import Line, Panel, Picture, is_wide
from fgbench.report.quantities import LATENCY_NAMES

METRICS = ("normalized_latency", "ttft", "jct")
RATE = "offered rate (requests / s)"


def latency(comparison: Comparison, objectives: Sequence[Objective], statistic: str) -> Picture | None:
    """A panel for each of ``METRICS``; the first bound on one of them is its level."""
    panels = []
    for metric in METRICS:
        bounds = [bound for each in objectives for bound in each.slo.bounds]
        limits = [bound.limit for bound in bounds if (bound.metric, bound.statistic) == (metric, statistic)]
        unit = "s / token" if metric == "normalized_latency" else "s"
        panel = Panel(
            title=f"{statistic} {LATENCY_NAMES[metric]} ({unit})",
            x=RATE,
            y="",
            lines=_lines(comparison, lambda point, metric=metric: point.estimate(metric, statistic)),  # type: ignore[misc]
            level=limits[0] if limits else None,
            x_ticks=[rate for rate in comparison.rates if math.isfinite(rate)],
        )
        if not panel.lines:
            return None
        panels.append(replace(panel, y_log=is_wide(panel.y_range)))
    name = "latency" if statistic == "mean" else f"latency-{statistic}"
    return _picture(comparison, name, title(comparison), panels, "SLO")


def attainment(comparison: Comparison, objectives: Sequence[Objective]) -> Picture | None:
    """A panel for each SLO."""
    panels = [
        Panel(
            title=str(each.slo).replace(",", ", "),
            x=RATE,
            y="requests within the SLO",
            lines=_lines(comparison, each.attainment),
            level=TARGET,
            x_ticks=[rate for rate in comparison.rates if math.isfinite(rate)],
            y_percent=True,
        )
        for each in objectives
    ]
    if not panels or not panels[0].lines:
        return None
    return _picture(comparison, "attainment", title(comparison), panels, f"{TARGET:.0%} of the requests")


def _lines(comparison: Comparison, of: Callable[[Point], Estimate | None]) -> list[Line]:
    """Of complete runs at finite rates: the means of others are those of the quick requests."""
    lines = []
    for style, label in enumerate(comparison.labels):
        points = [point for point in comparison.of(label) if point.complete and math.isfinite(point.rate)]
        known = [(point, estimate) for point in points if (estimate := of(point)) is not None]
        if known:
            lines.append(
                Line(
                    label,
                    style,
                    xs=[point.rate for point, _ in known],
                    ys=[estimate.value for _, estimate in known],
                    hollow=[point.overloaded for point, _ in known],
                    intervals=[
                        (estimate.interval.low, estimate.interval.high) if estimate.interval else None
                        for _, estimate in known
                    ],
                )
            )
    return lines


def _picture(comparison: Comparison, name: str, text: str, panels: Sequence[Panel], level: str) -> Picture:
    return Picture(name, text, panels, min(3, len(panels)), comparison.labels, level)
