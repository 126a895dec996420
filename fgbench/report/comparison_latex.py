"""Shows a comparison as LaTeX tables, for a paper. They need the packages booktabs and amssymb. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fgbench.report.comparison import Cell, Comparison, ComparisonPoint
from fgbench.report.notes import marks, notes, title
from fgbench.report.quantities import HEADLINES, LATENCIES, Quantity
from fgengine.units import times

COLUMNS = (*HEADLINES, *(q for q in LATENCIES if q.statistic == "p99" and q.metric == "jct"))
SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "µ": r"\textmu{}",
    "–": "--",
    "▲": r"$\blacktriangle$",
    "△": r"$\triangle$",
    "◆": r"$\blacklozenge$",
    "◐": r"$\circleddash$",
    "▤": r"$\boxminus$",
    "◷": r"$\circledcirc$",
    "ƒ": r"$f$",
    "◌": r"$\circ$",
    "✔": r"$\checkmark$",
    "✘": r"$\times$",
    "≈": r"$\approx$",
}
"""Characters that LaTeX does not take as they are, and the signs of marks and verdicts."""
MARKS = {"better": r"$\checkmark$", "worse": r"$\times$", "not distinguishable": r"$\approx$"}


def comparison_latex(comparison: Comparison) -> str:
    r"""Return a ``table`` with a row for each backend and load.

    Ratios to the baseline are in parentheses, with their verdicts. What the marks mean, and other notes, are
    below the table.
    """
    names = [f"{quantity.statistic or ''} {quantity.name}".strip() for quantity in COLUMNS]
    head = " & ".join(map(escaped, (comparison.axis.name, "backend", *names)))
    caption = f"{title(comparison)}. Ratios are to {comparison.names[comparison.baseline]}."
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(caption)}}}",
        rf"\begin{{tabular}}{{ll{'r' * len(COLUMNS)}}}",
        r"\toprule",
        rf"{head} \\",
    ]
    for level in comparison.levels:
        lines.append(r"\midrule")
        lines += [_row(comparison, point, level) for point in comparison.at(level)]
    below = [rf"\par\footnotesize {escaped(note.text)}" for note in notes(comparison)]
    lines += [r"\bottomrule", r"\end{tabular}", *below, r"\end{table}"]
    return "\n".join([r"% \usepackage{booktabs,amssymb}", *lines]) + "\n"


def escaped(text: str) -> str:
    """Return the text with LaTeX's special characters escaped."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _row(comparison: Comparison, point: ComparisonPoint, level: float) -> str:
    cells: Sequence[str] = [
        escaped(comparison.load_in_words(level)),
        escaped(comparison.names[point.label] + marks(point)),
        *(_cell(quantity, comparison.cell(point, quantity)) for quantity in COLUMNS),
    ]
    return " & ".join(cells) + r" \\"


def _cell(quantity: Quantity, cell: Cell | None) -> str:
    if cell is None:
        return "--"
    text = escaped(quantity.show(cell.value))
    if cell.ratio is None:
        return text
    mark = MARKS.get(cell.verdict or "", "")
    return f"{text} ({escaped(times(cell.ratio.value))}{' ' if mark else ''}{mark})"
