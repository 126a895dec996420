"""All the pictures of a comparison. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

from fgbench.metrics.metric import OF_REQUESTS, metric_called
from fgbench.metrics.record import STATES
from fgbench.metrics.statistics import Estimate
from fgbench.metrics.timeline import queue_lengths
from fgbench.report.comparison import Comparison, ComparisonPoint
from fgbench.report.notes import marks, title
from fgbench.report.objectives import TARGET, Objective
from fgbench.report.pairing import CONCURRENCY
from fgbench.report.pictures.picture import Bar, Bars, Line, Panel, Picture, is_wide, picked

MAX_NAMED = 4
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
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return f"measured beside other programs: {', '.join(named[:MAX_NAMED])}{more}" if named else ""


CURVES = ("normalized_latency", "ttft", "jct")


def latency(comparison: Comparison, objectives: Sequence[Objective], statistic: str) -> Picture | None:
    """A panel for each of ``CURVES``; the first bound on one of them is its level."""
    levels = _finite(comparison)
    panels = []
    for metric in CURVES:
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


def _lines(comparison: Comparison, of: Callable[[ComparisonPoint], Estimate | None]) -> list[Line]:
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


MAX_POINTS = 500
"""Of a curve, evenly spread over the requests; more cannot be seen, and a PDF would hold each."""
SPREAD = ("jct", "ttft")


def distributions(comparison: Comparison) -> Picture | None:
    """A row for each of JCT and TTFT, a column for each load; the requests of all seeds together."""
    levels = [level for level in comparison.levels if any(point.complete for point in comparison.at(level))]
    shown = picked(levels)
    panels = []
    for metric in SPREAD:
        name, of_request = metric_called(metric).label, OF_REQUESTS[metric]
        for level in shown:
            lines = []
            for style, label in enumerate(comparison.labels):
                for point in comparison.at(level):
                    if point.label == label and point.complete:
                        records = [record for entry in point.counted for record in entry.records]
                        values = [v for record in records if record.ok for v in of_request(record)]
                        xs, ys = cumulated(values)
                        if xs:
                            lines.append(Line(label, style, xs, ys, marked=False))
            if lines:
                panel = Panel(
                    f"{name} at {comparison.axis.say(level)}",
                    f"{name} (s)",
                    "requests",
                    lines,
                    y_percent=True,
                )
                panels.append(replace(panel, x_log=is_wide(panel.x_range)))
    if len(panels) != len(SPREAD) * len(shown) or not panels:
        return None
    which = f"{len(shown)} of {len(levels)} loads" if len(shown) < len(levels) else ""
    return Picture(
        "cdf", title(comparison), panels, len(shown), comparison.labels, notes=[which] if which else []
    )


def cumulated(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """The empirical distribution: sorted values and the share of the sample up to each, ``MAX_POINTS`` of
    them, the smallest and the largest included."""
    import numpy as np

    ordered = np.sort(np.asarray(values, dtype=float))
    if not ordered.size:
        return [], []
    at = np.unique(np.linspace(0, ordered.size - 1, min(MAX_POINTS, ordered.size)).round().astype(int))
    return ordered[at].tolist(), ((at + 1) / ordered.size).tolist()


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


def _parts(point: ComparisonPoint) -> dict[str, float]:
    """Means over seeds, of the states that all of them account for."""
    accounts = [entry.breakdown.seconds for entry in point.counted if entry.breakdown is not None]
    return {
        state: fmean(account[state] for account in accounts)
        for state in STATES
        if accounts and all(state in account for account in accounts)
    }


ROWS = (("waiting", "waiting for a first token"), ("answering", "being answered"))


def queues(comparison: Comparison) -> Picture | None:
    """A row for each of the waiting and the answered, a column for each load; the first seed of each."""
    columns = []
    for level in comparison.levels:
        complete = [point for point in comparison.at(level) if point.complete]
        timelines = [(point.label, queue_lengths(point.counted[0].run.records)) for point in complete]
        found = [(label, timeline) for label, timeline in timelines if timeline is not None]
        if found:
            columns.append((level, found))
    if not columns:
        return None
    chosen = picked([level for level, _ in columns])
    shown = [column for column in columns if column[0] in chosen]
    panels = [
        Panel(
            comparison.axis.say(level),
            "seconds into the run",
            name,
            [
                Line(
                    label, comparison.labels.index(label), line.times, getattr(line, attribute), marked=False
                )
                for label, line in found
            ],
        )
        for attribute, name in ROWS
        for level, found in shown
    ]
    notes = [f"{len(shown)} of {len(columns)} loads"] if len(shown) < len(columns) else []
    if len(comparison.seeds) > 1:
        notes.append("the first seed of each backend")
    return Picture("queues", title(comparison), panels, len(shown), comparison.labels, notes=notes)
