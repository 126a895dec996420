"""How JCT and TTFT are spread over the requests. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fgbench.metrics.metric import OF_REQUESTS, metric_called
from fgbench.report.comparison import Comparison
from fgbench.report.notes import title
from fgbench.report.pictures.picture import Line, Panel, Picture, is_wide, picked

MOST_POINTS = 500
"""Of a curve, evenly spread over the requests; more cannot be seen, and a PDF would hold each."""
METRICS = ("jct", "ttft")


def distributions(comparison: Comparison) -> Picture | None:
    """A row for each of JCT and TTFT, a column for each load; the requests of all seeds together."""
    levels = [level for level in comparison.levels if any(point.complete for point in comparison.at(level))]
    shown = picked(levels)
    panels = []
    for metric in METRICS:
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
    if len(panels) != len(METRICS) * len(shown) or not panels:
        return None
    which = f"{len(shown)} of {len(levels)} loads" if len(shown) < len(levels) else ""
    return Picture(
        "cdf", title(comparison), panels, len(shown), comparison.labels, notes=[which] if which else []
    )


def cumulated(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """The empirical distribution: sorted values and the share of the sample up to each, ``MOST_POINTS`` of
    them, the smallest and the largest included."""
    import numpy as np

    ordered = np.sort(np.asarray(values, dtype=float))
    if not ordered.size:
        return [], []
    at = np.unique(np.linspace(0, ordered.size - 1, min(MOST_POINTS, ordered.size)).round().astype(int))
    return ordered[at].tolist(), ((at + 1) / ordered.size).tolist()
