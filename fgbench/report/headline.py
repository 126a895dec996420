"""The first lines of a comparison: which backend is faster under the highest load, and by how much. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fgbench.report.comparison import Comparison, ComparisonPoint
from fgbench.report.notes import VERDICT_MARKS, marks, title
from fgbench.report.objectives import Objective
from fgbench.report.quantities import LATENCIES, Quantity
from fgengine.units import times

SHOWN = ("normalized_latency", "ttft")
"""Metrics whose means are shown."""
MAX_BACKENDS = 5
"""Maximum number of backends that are shown."""
MAX_LINES = 10
"""Maximum number of lines."""


def headline(comparison: Comparison, objectives: Sequence[Objective]) -> list[str]:
    """Return the headline of a comparison, at most ``MAX_LINES`` lines.

    It has the workload, one line per backend (the fastest first), and the load up to which each backend meets
    the first SLO. A factor such as ``0.50x`` is the ratio to the baseline.
    """
    lines = [title(comparison)]
    level = comparison.levels[-1]
    points = comparison.at(level)
    quantities = [q for q in LATENCIES if q.statistic == "mean" and q.metric in SHOWN]
    rank = quantities[0]
    points.sort(key=lambda point: cell.value if (cell := comparison.cell(point, rank)) else math.inf)
    highest = f", the highest of {len(comparison.levels)} loads" if len(comparison.levels) > 1 else ""
    means = " and ".join(quantity.name for quantity in quantities)
    lines.append(f"{comparison.load_in_words(level)}{highest}: mean {means}")
    shown = points[:MAX_BACKENDS]
    names = max(len(_name(comparison, point)) for point in shown)
    cells = [[_cell(comparison, point, quantity) for quantity in quantities] for point in shown]
    widths = [max(len(row[i]) for row in cells) for i in range(len(quantities))]
    for point, row in zip(shown, cells, strict=True):
        columns = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"  {_name(comparison, point):<{names}}  {columns}".rstrip())
    if len(points) > MAX_BACKENDS:
        lines.append(f"  and {len(points) - MAX_BACKENDS} more below")
    if objectives and len(comparison.levels) > 1:
        lines.append(_limits(comparison, objectives[0]))
    return lines[:MAX_LINES]


def _name(comparison: Comparison, point: ComparisonPoint) -> str:
    baseline = " (baseline)" if point.label == comparison.baseline and len(comparison.labels) > 1 else ""
    return f"{comparison.names[point.label]}{marks(point)}{baseline}"


def _cell(comparison: Comparison, point: ComparisonPoint, quantity: Quantity) -> str:
    cell = comparison.cell(point, quantity)
    if cell is None or cell.ratio is None:
        return quantity.show(cell.value if cell else None)
    mark = VERDICT_MARKS.get(cell.verdict or "", "")
    return f"{quantity.show(cell.value)} ({times(cell.ratio.value)}{' ' if mark else ''}{mark})"


def _limits(comparison: Comparison, objective: Objective) -> str:
    """Return a line with the load up to which each backend meets the SLO."""
    reached = []
    for label in comparison.labels[:MAX_BACKENDS]:
        limit = objective.rate(label)
        reached.append(f"{label} {'-' if limit is None else limit.describe(comparison.axis.unit)}")
    return f"{objective.slo} is met up to: {', '.join(reached)}"
