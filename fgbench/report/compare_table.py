"""Shows a comparison as tables in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fgbench.metrics.statistics import CONFIDENCE
from fgbench.report.comparison import Comparison, ComparisonPoint
from fgbench.report.headline import headline
from fgbench.report.marks import OVERLOADED, signs
from fgbench.report.notes import VERDICT_MARKS, is_judged, marks, notes
from fgbench.report.objectives import TARGET, Objective
from fgbench.report.quantities import (
    HEADLINES,
    IN_THE_SERVER,
    LATENCIES,
    SLOWDOWNS,
    THROUGHPUTS,
    Quantity,
    outcomes,
)
from fgengine.units import number, span, times

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

STYLES = {"better": "green", "worse": "red", "not distinguishable": "dim"}
NOTABLE = 0.05
"""Ratios without a verdict get no colour if they are within 5% of 1."""
NAMES_WIDTH, CELL_WIDTH = 30, 17
"""Terminal columns for the names of the figures, and for one backend."""
INTERVAL = f"{CONFIDENCE:.0%}"


def comparison_tables(comparison: Comparison, objectives: Sequence[Objective], width: int) -> Group:
    """Return the tables: one per level, then verdicts, then SLOs.

    A table of a level has a row per figure and a column per backend. If the backends do not fit in ``width``
    terminal columns, they are split into several tables. Each of them also shows the baseline.
    """
    from rich.console import Group
    from rich.text import Text

    first, *rest = headline(comparison, objectives)
    parts: list[Table | Text] = [Text(first, style="bold"), *map(Text, rest), Text()]
    if len(comparison.labels) > 1:
        parts.append(
            Text(f"x: ratio to {comparison.baseline} at the same {comparison.axis.name}", style="dim")
        )
    columns = _columns(comparison, max(1, (width - NAMES_WIDTH) // CELL_WIDTH))
    for level in comparison.levels:
        here = {point.label: point for point in comparison.at(level)}
        for labels in columns:
            if points := [here[label] for label in labels if label in here]:
                parts += [Text(), _level_table(comparison, level, points)]
    if is_judged(comparison):
        parts += [part for labels in columns for part in (Text(), _verdict_table(comparison, labels))]
    for objective in objectives:
        parts += [part for labels in columns for part in (Text(), _objective_table(objective, labels))]
    parts.append(Text())
    parts += [Text(note.text, style="yellow" if note.warns else "dim") for note in notes(comparison)]
    return Group(*parts)


def _columns(comparison: Comparison, limit: int) -> list[list[str]]:
    """Split the backends into tables of similar size, at most ``limit`` backends each.

    Each table has the baseline as its last column.
    """
    others = [label for label in comparison.labels if label != comparison.baseline]
    tables = max(1, math.ceil(len(others) / max(1, limit - 1)))
    each = max(1, math.ceil(len(others) / tables))
    return [[*others[i : i + each], comparison.baseline] for i in range(0, max(1, len(others)), each)]


def _table(name: str, columns: Sequence[str], names: int = 1) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=name,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for _ in range(names):
        table.add_column("", overflow="fold")
    for column in columns:  # wrap text if a column is narrow: cutting off a digit would change a number
        table.add_column(column, justify="right", overflow="fold", max_width=max(CELL_WIDTH, 26))
    return table


def _level_table(comparison: Comparison, level: float, points: Sequence[ComparisonPoint]) -> Table:
    columns = [f"{comparison.names[point.label]}{marks(point)}" for point in points]
    table = _table(comparison.load_in_words(level), columns, names=2)
    for quantities in (LATENCIES, THROUGHPUTS, SLOWDOWNS, IN_THE_SERVER):
        shown = [q for q in quantities if any(comparison.cell(p, q) is not None for p in points)]
        previous = ""
        for quantity in shown:
            name = quantity.name if quantity.name != previous else ""
            if name and previous and quantity.statistic:
                table.add_section()
            previous = quantity.name
            table.add_row(name, quantity.statistic or "", *(_cell(comparison, p, quantity) for p in points))
            intervals = [_interval(comparison, point, quantity) for point in points]
            if any(intervals):
                table.add_row("", INTERVAL, *intervals, style="dim")
        if quantities is THROUGHPUTS:
            table.add_row("answered", "", *(point.answered for point in points))
            for quantity in outcomes(natural_lengths=comparison.natural_lengths):
                table.add_row(quantity.name, "", *(_cell(comparison, p, quantity) for p in points))
        table.add_section()
    return table


def _cell(comparison: Comparison, point: ComparisonPoint, quantity: Quantity) -> Text:
    from rich.text import Text

    cell = comparison.cell(point, quantity)
    text = Text(quantity.show(cell.value if cell else None))
    if cell is not None and cell.ratio is not None:
        verdict, ratio = cell.verdict or "", cell.ratio.value
        if verdict in STYLES:
            style = STYLES[verdict]
        elif abs(ratio - 1.0) <= NOTABLE:
            style = "dim"
        else:
            style = STYLES["better" if (ratio < 1.0) == quantity.lower_is_better else "worse"]
        text.append(f" {times(ratio)}{_mark(verdict)}", style=style)
    elif len(comparison.labels) > 1 and quantity.better and point.label != comparison.baseline:
        text.append("      ")
    return text


def _mark(verdict: str) -> str:
    return f" {VERDICT_MARKS[verdict]}" if verdict in VERDICT_MARKS else ""


def _interval(comparison: Comparison, point: ComparisonPoint, quantity: Quantity) -> str:
    """Return the interval of a mean latency; empty for other figures, to keep the table readable."""
    if quantity.statistic != "mean" or not quantity.is_time:
        return ""
    cell = comparison.cell(point, quantity)
    return span(cell.interval.low, cell.interval.high) if cell and cell.interval else ""


def _verdict_table(comparison: Comparison, labels: Sequence[str]) -> Table:
    """Return the ratios of the headline figures, with intervals and verdicts."""
    from rich.text import Text

    others = [label for label in labels if label != comparison.baseline]
    table = _table(f"ratio to {comparison.baseline}, with its {INTERVAL} interval", others, names=2)
    for level in comparison.levels:
        points = {point.label: point for point in comparison.at(level)}
        for quantity in HEADLINES:
            cells = []
            for label in others:
                cell = comparison.cell(points[label], quantity) if label in points else None
                if cell is None or cell.ratio is None:
                    cells.append(Text("-"))
                    continue
                verdict, around = cell.verdict or "", cell.ratio.interval
                text = f"{times(cell.ratio.value)}{_mark(verdict)}"
                if around:
                    text += f" {around.low:.2f}–{around.high:.2f}"
                cells.append(Text(text, style=STYLES.get(verdict, "")))
            name = comparison.axis.describe(level) if quantity is HEADLINES[0] else ""
            table.add_row(name, quantity.name, *cells)
        table.add_section()
    return table


def _objective_table(objective: Objective, labels: Sequence[str]) -> Table:
    from rich.text import Text

    comparison = objective.comparison
    table = _table(f"SLO {objective.slo}: met by the run, share of requests that attain it, goodput", labels)
    for level in comparison.levels:
        points = {point.label: point for point in comparison.at(level)}
        cells = [_attained(objective, points[label]) if label in points else Text("-") for label in labels]
        table.add_row(comparison.axis.describe(level), *cells)
    table.add_section()
    met_up_to = []
    for label in labels:
        reached, ratio = objective.rate(label), objective.ratio(label)
        cell = Text("-" if reached is None else reached.describe(comparison.axis.unit))
        cell.append(signs([OVERLOADED]) if objective.is_above_capacity(label) else "")
        if ratio is not None and ratio.is_known:
            verdict = objective.verdict(label) or ""
            cell.append(f" {ratio.describe('x')}{_mark(verdict)}", style=STYLES.get(verdict, ""))
        met_up_to.append(cell)
    table.add_row("runs meet it up to", *met_up_to)
    rates = [objective.attained_up_to(label) for label in labels]
    attained_up_to = ["-" if rate is None else rate.describe(comparison.axis.unit) for rate in rates]
    table.add_row(f"{TARGET:.0%} of requests attain it up to", *attained_up_to)
    return table


def _attained(objective: Objective, point: ComparisonPoint) -> Text:
    """Return whether the run met the SLO, the share of requests that attained it, and the goodput."""
    from rich.text import Text

    share, good = objective.attainment(point), objective.goodput(point)
    if share is None or good is None:
        return Text("-")
    met = objective.met_by(point)
    verdict = "" if met is None else "yes " if met else "no "
    return Text(f"{verdict}{share.value:.0%} {number(good.value)}/s{marks(point)}")
