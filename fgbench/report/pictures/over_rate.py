"""Latencies and SLO attainment over the offered rate, or over a closed loop's concurrency. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from fgbench.metrics.metric import metric_called
from fgbench.metrics.seeds import Estimate
from fgbench.report.axis import CONCURRENCY
from fgbench.report.comparison import Comparison, Point
from fgbench.report.notes import title
from fgbench.report.objectives import TARGET, Objective
from fgbench.report.pictures.picture import Line, Panel, Picture, is_wide

METRICS = ("normalized_latency", "ttft", "jct")


def latency(comparison: Comparison, objectives: Sequence[Objective], statistic: str) -> Picture | None:
    """A panel for each of ``METRICS``; the first bound on one of them is its level."""
    levels = _finite(comparison)
    panels = []
    for metric in METRICS:
        bounds = [bound for each in objectives for bound in each.slo.bounds]
        limits = [bound.limit for bound in bounds if (bound.metric, bound.statistic) == (metric, statistic)]
        drawn = metric_called(metric)
        unit = drawn.unit.replace("/", " / ")
        panel = Panel(
            title=f"{statistic} {drawn.label} ({unit})",
            x=comparison.axis.title,
            y="",
            lines=_lines(comparison, lambda point, metric=metric: point.estimate(metric, statistic)),  # type: ignore[misc]
            level=limits[0] if limits else None,
            x_ticks=levels,
            x_log=comparison.axis is CONCURRENCY and is_wide(levels),
        )
        if not panel.lines:
            return None
        panels.append(replace(panel, y_log=is_wide(panel.y_range)))
    name = "latency" if statistic == "mean" else f"latency-{statistic}"
    return _picture(comparison, name, title(comparison), panels, "SLO")


def attainment(comparison: Comparison, objectives: Sequence[Objective]) -> Picture | None:
    """A panel for each SLO."""
    levels = _finite(comparison)
    panels = [
        Panel(
            title=str(each.slo).replace(",", ", "),
            x=comparison.axis.title,
            y="requests within the SLO",
            lines=_lines(comparison, each.attainment),
            level=TARGET,
            x_ticks=levels,
            x_log=comparison.axis is CONCURRENCY and is_wide(levels),
            y_percent=True,
        )
        for each in objectives
    ]
    if not panels or not panels[0].lines:
        return None
    return _picture(comparison, "attainment", title(comparison), panels, f"{TARGET:.0%} of the requests")


def _finite(comparison: Comparison) -> list[float]:
    return [level for level in comparison.levels if math.isfinite(level)]


def _lines(comparison: Comparison, of: Callable[[Point], Estimate | None]) -> list[Line]:
    """Of complete runs at finite levels: the means of others are those of the quick requests."""
    lines = []
    for style, label in enumerate(comparison.labels):
        points = [point for point in comparison.of(label) if point.complete and math.isfinite(point.level)]
        known = [(point, estimate) for point in points if (estimate := of(point)) is not None]
        if known:
            lines.append(
                Line(
                    label,
                    style,
                    xs=[point.level for point, _ in known],
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
