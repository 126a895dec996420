"""Makes the pictures of a comparison. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

from fgbench.metrics.lengths import by_length
from fgbench.metrics.metric import OF_REQUESTS, metric_called
from fgbench.metrics.record import STATES
from fgbench.metrics.statistics import Estimate
from fgbench.metrics.timeline import queue_lengths
from fgbench.report.comparison import Cell, Comparison, ComparisonPoint
from fgbench.report.marks import ANALYTIC, CACHED, CLIENT, CLUMPED, DISTURBED, OVERLOADED, UNJUDGED, Mark
from fgbench.report.notes import marks, title
from fgbench.report.objectives import TARGET, Objective
from fgbench.report.pairing import CONCURRENCY
from fgbench.report.pictures.picture import (
    Bar,
    Bars,
    Line,
    Panel,
    Picture,
    is_wide,
    picked,
)
from fgbench.report.pictures.styles import styles_of
from fgbench.report.quantities import Quantity, quantity_called

NAMED = (UNJUDGED, DISTURBED, CACHED, CLUMPED, CLIENT, ANALYTIC)
"""Marks that a note in the picture names. Points above capacity are hollow."""
MAX_NAMED = 4
"""Maximum number of points of one mark that a picture's title names."""


def pictures_of(comparison: Comparison, objectives: Sequence[Objective]) -> list[Picture]:
    """Return the pictures that have data. They show only complete runs."""
    found = (
        latency(comparison, objectives, "mean"),
        latency(comparison, objectives, "p95"),
        latency(comparison, objectives, "p99"),
        bars(comparison),
        lengths(comparison),
        attainment(comparison, objectives),
        distributions(comparison),
        breakdown(comparison),
        queues(comparison),
    )
    notes = [_marked(comparison, mark) for mark in NAMED if _points(comparison, mark)]
    return [replace(picture, notes=[*picture.notes, *notes]) for picture in found if picture is not None]


def _points(comparison: Comparison, mark: Mark) -> list[ComparisonPoint]:
    """Return the points in the pictures that have a mark."""
    return [point for point in comparison.points if point.complete and mark in point.marks]


def _marked(comparison: Comparison, mark: Mark) -> str:
    """Return a note that names the marked points: only the backends, if all of their points are marked."""
    points = sorted(_points(comparison, mark), key=lambda point: (point.label, point.level))
    details = ", ".join(sorted({detail for point in points if (detail := point.marks[mark])}))
    words = f"{mark.words} ({details})" if details else mark.words
    labels = sorted({point.label for point in points})
    if len(points) == sum(point.complete for label in labels for point in comparison.of(label)):
        everyone = labels == sorted(comparison.labels)
        return words if everyone else f"{words}: {', '.join(labels)}"
    named = [f"{point.label} at {comparison.axis.describe(point.level)}" for point in points]
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return f"{words}: {', '.join(named[:MAX_NAMED])}{more}"


CURVES = ("normalized_latency", "ttft", "jct", "tpot", "itl")


def latency(comparison: Comparison, objectives: Sequence[Objective], statistic: str) -> Picture | None:
    """Return the picture of latency against load, with a panel for each of ``CURVES``.

    The first SLO bound on a panel's figure is drawn as its level.
    """
    levels = _finite(comparison)
    panels = []
    for metric in CURVES:
        bounds = [bound for each in objectives for bound in each.slo.bounds]
        limits = [bound.limit for bound in bounds if (bound.metric, bound.statistic) == (metric, statistic)]
        definition = metric_called(metric)
        unit = definition.unit.replace("/", " / ")
        panel = Panel(
            title=f"{statistic} {definition.label} ({unit})",
            x=comparison.axis.title,
            y="",
            lines=_lines(comparison, partial(_cell, comparison, quantity_called(metric, statistic))),
            level=limits[0] if limits else None,
            x_ticks=levels,
            x_log=comparison.axis is CONCURRENCY and is_wide(levels),
        )
        if panel.lines:
            panels.append(replace(panel, y_log=is_wide(panel.y_range)))
    if not panels or len(levels) < 2:  # of one level, ``bars`` shows the latencies
        return None
    name = "latency" if statistic == "mean" else f"latency-{statistic}"
    return _picture(comparison, name, title(comparison), panels, "SLO")


def bars(comparison: Comparison) -> Picture | None:
    """Return the picture of mean latencies of a comparison with one level: a panel for each of ``CURVES``."""
    levels = [level for level in comparison.levels if any(point.complete for point in comparison.at(level))]
    if len(levels) != 1:
        return None
    points = [point for point in comparison.at(levels[0]) if point.complete]
    panels = []
    for metric in CURVES:
        cells = [(point, comparison.cell(point, quantity_called(metric, "mean"))) for point in points]
        drawn = [
            Bar(
                comparison.names[point.label],
                {"": cell.value},
                marks(point),
                styles_of(comparison)[point.label],
                (cell.interval.low, cell.interval.high) if cell.interval else None,
            )
            for point, cell in cells
            if cell is not None
        ]
        if len(drawn) == len(points):
            panels.append(Bars(f"mean {metric_called(metric).label}", metric_called(metric).unit, drawn))
    if not panels:
        return None
    notes = [comparison.load_in_words(levels[0])]
    return Picture("bars", title(comparison), panels, min(3, len(panels)), _names(comparison), notes=notes)


def lengths(comparison: Comparison) -> Picture | None:
    """Return the picture of latency by output length: rows for JCT per token and JCT, a column per level.

    A feedback queue serves short answers first, which a mean over all requests does not show.
    """
    levels = [level for level in comparison.levels if any(point.complete for point in comparison.at(level))]
    shown = picked(levels)
    panels = []
    for metric in ("normalized_latency", "jct"):
        for level in shown:
            lines = []
            for label, style in styles_of(comparison).items():
                for point in comparison.at(level):
                    if point.label != label or not point.complete:
                        continue
                    buckets = by_length(record for entry in point.counted for record in entry.records)
                    if len(buckets) > 1:
                        xs = [math.sqrt(one.start * (one.end or 2 * one.start)) for one in buckets]
                        ys = [float(getattr(one, metric)) for one in buckets]
                        lines.append(Line(comparison.names[label], style, xs, ys))
            if lines:
                name, unit = metric_called(metric).label, metric_called(metric).unit.replace("/", " / ")
                panel = Panel(
                    f"mean {name} at {comparison.load_in_words(level)}",
                    "output tokens",
                    f"{name} ({unit})",
                    lines,
                    x_log=True,
                )
                panels.append(replace(panel, y_log=is_wide(panel.y_range)))
    if not panels or len(panels) != 2 * len(shown):
        return None
    notes = [f"{len(shown)} of {len(levels)} loads"] if len(shown) < len(levels) else []
    return Picture("lengths", title(comparison), panels, len(shown), _names(comparison), notes=notes)


def attainment(comparison: Comparison, objectives: Sequence[Objective]) -> Picture | None:
    """Return the picture of SLO attainment against load, with a panel for each SLO."""
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


def _cell(comparison: Comparison, quantity: Quantity, point: ComparisonPoint) -> Cell | None:
    return comparison.cell(point, quantity)


def _names(comparison: Comparison) -> list[str]:
    return [comparison.names[label] for label in comparison.labels]


def _finite(comparison: Comparison) -> list[float]:
    return [level for level in comparison.levels if math.isfinite(level)]


def _lines(comparison: Comparison, of: Callable[[ComparisonPoint], Estimate | Cell | None]) -> list[Line]:
    """Return a line per backend, of complete runs at finite levels.

    The means of incomplete runs are too low, since the slow requests are missing.
    """
    lines = []
    for label, style in styles_of(comparison).items():
        points = [point for point in comparison.of(label) if point.complete and math.isfinite(point.level)]
        known = [(point, estimate) for point in points if (estimate := of(point)) is not None]
        if known:
            lines.append(
                Line(
                    comparison.names[label],
                    style,
                    xs=[point.level for point, _ in known],
                    ys=[estimate.value for _, estimate in known],
                    hollow=[OVERLOADED in point.marks for point, _ in known],
                    intervals=[
                        (estimate.interval.low, estimate.interval.high) if estimate.interval else None
                        for _, estimate in known
                    ],
                )
            )
    return lines


def _picture(comparison: Comparison, name: str, text: str, panels: Sequence[Panel], level: str) -> Picture:
    return Picture(name, text, panels, min(3, len(panels)), _names(comparison), level)


MAX_POINTS = 500
"""Maximum number of points of a curve. More are not visible, but would make the PDF larger."""
SPREAD = ("jct", "ttft")


def distributions(comparison: Comparison) -> Picture | None:
    """Return the picture of distributions: rows for JCT and TTFT, a column per load, all seeds together."""
    levels = [level for level in comparison.levels if any(point.complete for point in comparison.at(level))]
    shown = picked(levels)
    panels = []
    for metric in SPREAD:
        name, of_request = metric_called(metric).label, OF_REQUESTS[metric]
        for level in shown:
            lines = []
            for label, style in styles_of(comparison).items():
                for point in comparison.at(level):
                    if point.label == label and point.complete:
                        records = [record for entry in point.counted for record in entry.records]
                        values = [v for record in records if record.ok for v in of_request(record)]
                        xs, ys = cumulated(values)
                        if xs:
                            lines.append(Line(comparison.names[label], style, xs, ys, marked=False))
            if lines:
                panel = Panel(
                    f"{name} at {comparison.load_in_words(level)}",
                    f"{name} (s)",
                    "requests",
                    lines,
                    y_percent=True,
                )
                panels.append(replace(panel, x_log=is_wide(panel.x_range)))
    if len(panels) != len(SPREAD) * len(shown) or not panels:
        return None
    notes = [f"{len(shown)} of {len(levels)} loads"] if len(shown) < len(levels) else []
    return Picture("cdf", title(comparison), panels, len(shown), _names(comparison), notes=notes)


def cumulated(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the empirical distribution: sorted values, and for each the share of the sample up to it.

    Returns at most ``MAX_POINTS`` points, including the smallest and the largest value.
    """
    import numpy as np

    ordered = np.sort(np.asarray(values, dtype=float))
    if not ordered.size:
        return [], []
    at = np.unique(np.linspace(0, ordered.size - 1, min(MAX_POINTS, ordered.size)).round().astype(int))
    return ordered[at].tolist(), ((at + 1) / ordered.size).tolist()


def breakdown(comparison: Comparison) -> Picture | None:
    """Return the picture of where requests spent their time in the server.

    It has a panel per load, and a bar per backend whose server reports this.
    """
    parts_at = {
        (point.level, point.label): (point, parts)
        for point in comparison.points
        if point.complete and (parts := _parts(point))
    }
    if not parts_at:
        return None
    labels = [label for label in comparison.labels if any(label == other for _, other in parts_at)]
    levels = sorted({level for level, _ in parts_at})
    shown = picked(levels)
    panels = []
    for level in shown:
        bars = []
        for label in labels:
            point, parts = parts_at.get((level, label), (None, {}))
            bars.append(Bar(comparison.names[label], parts, marks(point) if point else ""))
        panels.append(Bars(comparison.load_in_words(level), "mean seconds of a request", bars))
    notes = [f"{len(shown)} of {len(levels)} loads"] if len(shown) < len(levels) else []
    return Picture("breakdown", title(comparison), panels, len(panels), _names(comparison), notes=notes)


def _parts(point: ComparisonPoint) -> dict[str, float]:
    """Return the mean seconds over seeds in each state that all runs report."""
    seeds = [entry.breakdown.seconds for entry in point.counted if entry.breakdown is not None]
    return {
        state: fmean(seconds[state] for seconds in seeds)
        for state in STATES
        if seeds and all(state in seconds for seconds in seeds)
    }


ROWS = (("waiting", "waiting for a first token"), ("answering", "being answered"))


def queues(comparison: Comparison) -> Picture | None:
    """Return the picture of queue lengths over time.

    It has rows for waiting and answered requests, and a column per load. It shows the first seed of each
    backend.
    """
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
            comparison.load_in_words(level),
            "seconds into the run",
            name,
            [
                Line(
                    comparison.names[label],
                    styles_of(comparison)[label],
                    line.times,
                    getattr(line, attribute),
                    marked=False,
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
    return Picture("queues", title(comparison), panels, len(shown), _names(comparison), notes=notes)
