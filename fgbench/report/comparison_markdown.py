"""Shows a comparison as Markdown tables, for a report or an issue. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from fgbench.report.comparison import Comparison, ComparisonPoint
from fgbench.report.marks import OVERLOADED, signs
from fgbench.report.notes import VERDICT_MARKS, marks, notes, seeds_paired, title
from fgbench.report.objectives import TARGET, Objective
from fgbench.report.quantities import HEADLINES, IN_THE_SERVER, LATENCIES, SLOWDOWNS, Quantity, outcomes
from fgengine.units import number, span, times

TAILS = tuple(quantity for quantity in LATENCIES if quantity.statistic == "p95")[:3]
FIGURES = (*HEADLINES, *TAILS)


def comparison_markdown(comparison: Comparison, objectives: Sequence[Objective]) -> str:
    """Return a table of the main figures, tables of each SLO, a table of the details, and the notes."""
    parts = [f"### {_escaped(title(comparison))}", _main_table(comparison)]
    parts += [_objective_table(objective) for objective in objectives]
    if details := _details_table(comparison):
        parts.append(details)
    parts += [_escaped(note.text) for note in notes(comparison)]
    return "\n\n".join(parts) + "\n"


def _main_table(comparison: Comparison) -> str:
    figures = (*FIGURES, *outcomes(natural_lengths=comparison.natural_lengths))
    names = [*map(_name, figures), "answered"]
    rows = [
        [
            *_point(comparison, point),
            *(_cell(comparison, point, quantity) for quantity in figures),
            point.answered,
        ]
        for point in _points(comparison)
    ]
    introduction = (
        f"Ratios are to {_escaped(comparison.baseline)} at the same {comparison.axis.name}.\n\n"
        if _has_ratios(comparison)
        else ""
    )
    return introduction + _table([comparison.axis.name, "backend", *names], rows)


def _cell(comparison: Comparison, point: ComparisonPoint, quantity: Quantity) -> str:
    cell = comparison.cell(point, quantity)
    if cell is None:
        return "-"
    text, ratio = quantity.show(cell.value), cell.ratio
    if cell.interval and quantity in LATENCIES:
        text += f" [{span(cell.interval.low, cell.interval.high)}]"
    if ratio is None:
        return text
    interval = f", {ratio.interval.low:.2f}–{ratio.interval.high:.2f}" if ratio.interval else ""
    mark = VERDICT_MARKS.get(cell.verdict or "", "")
    return f"{text} ({times(ratio.value)}{interval}{' ' + mark if mark else ''})"


def _objective_table(objective: Objective) -> str:
    comparison = objective.comparison
    rates = []
    for label in comparison.labels:
        ratio, attained = objective.ratio(label), objective.attained_up_to(label)
        verdict = objective.verdict(label) or "-"
        rates.append(
            [
                label,
                _met_up_to(objective, label),
                ratio.describe("x") if ratio else "-",
                verdict,
                attained.describe(comparison.axis.unit) if attained else "-",
            ]
        )
    shares = []
    for point in _points(comparison):
        share, good = objective.attainment(point), objective.goodput(point)
        if share is not None and good is not None:
            shares.append([*_point(comparison, point), f"{share.value:.0%}", f"{number(good.value)}/s"])
    return "\n\n".join(
        (
            f"SLO `{objective.slo}`:",
            _table(["backend", "met up to", "ratio", "verdict", f"attained by {TARGET:.0%} up to"], rates),
            _table([comparison.axis.name, "backend", "requests that attain it", "goodput"], shares),
        )
    )


def _met_up_to(objective: Objective, label: str) -> str:
    """Return the rate up to which the backend's runs meet the SLO, marked if it is above capacity."""
    reached = objective.rate(label)
    if reached is None:
        return "-"
    above = signs([OVERLOADED]) if objective.is_above_capacity(label) else ""
    return reached.describe(objective.comparison.axis.unit) + above


def _details_table(comparison: Comparison) -> str:
    """Return slowdown, fairness and what the server reports; empty if none of it is known."""
    shown = [
        quantity
        for quantity in (*SLOWDOWNS, *IN_THE_SERVER)
        if any(comparison.cell(point, quantity) is not None for point in comparison.points)
    ]
    if not shown:
        return ""
    rows = [
        [*_point(comparison, point), *(_cell(comparison, point, quantity) for quantity in shown)]
        for point in _points(comparison)
    ]
    return _table([comparison.axis.name, "backend", *map(_name, shown)], rows)


def _points(comparison: Comparison) -> Iterator[ComparisonPoint]:
    for level in comparison.levels:
        yield from comparison.at(level)


def _point(comparison: Comparison, point: ComparisonPoint) -> list[str]:
    return [comparison.load_in_words(point.level), f"{comparison.names[point.label]}{marks(point)}"]


def _name(quantity: Quantity) -> str:
    return f"{quantity.statistic} {quantity.name}" if quantity.statistic else quantity.name


def _has_ratios(comparison: Comparison) -> bool:
    return bool(seeds_paired(comparison))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * 2 + ["---:"] * (len(columns) - 2), *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(text: str) -> str:
    """Return text on one line, with Markdown's and HTML's special characters escaped."""
    text = " ".join(text.split())
    for sign in "\\|<>*_`":
        text = text.replace(sign, f"\\{sign}")
    return text
