"""How many requests waited and were being answered through a run. Pure."""

from __future__ import annotations

from fgbench.metrics.timeline import queue_lengths
from fgbench.report.comparison import Comparison
from fgbench.report.notes import title
from fgbench.report.pictures.picture import Line, Panel, Picture, picked

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
