"""The tables of reproduced figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fgbench.metrics.crossing import Range, rate_at
from fgbench.report.objectives import TARGET
from fgbench.reproduction.deviations import Deviation, largest_first
from fgbench.reproduction.published import Curve
from fgengine.units import times

if TYPE_CHECKING:
    from rich.table import Table


def deviation_table(title: str, found: Sequence[Deviation]) -> Table:
    """Return the table of figures here and in the paper, the largest deviation first."""
    table = _table(title, "panel", "figure", "here", "paper", "here / paper", left=2)
    for one in largest_first(found):
        factor = "-" if one.factor is None else times(one.factor)
        table.add_row(one.panel, one.what, _text(one.ours, one.unit), _text(one.published, one.unit), factor)
    return table


def attainment_table(panel: str, found: Mapping[str, Mapping[str, Curve]]) -> Table:
    """Return the table of the rates up to which 95% of the requests meet each SLO.

    Args:
        panel: Title.
        found: Curves of attainment by SLO and backend.
    """
    slos = [slo.replace(",", ", ") for slo in found]
    table = _table(f"{panel}: rate up to which {TARGET:.0%} of the requests meet an SLO", "backend", *slos)
    for label in dict.fromkeys(label for curves in found.values() for label in curves):
        table.add_row(label, *(_text(_rate_of(curves.get(label, [])), "/s") for curves in found.values()))
    return table


def _rate_of(attained: Curve) -> Range | None:
    return rate_at([(rate, 1.0 - share) for rate, share in attained], 1.0 - TARGET)


def _text(value: Range | None, unit: str) -> str:
    return "-" if value is None else value.describe(unit)


def _table(title: str, *columns: str, left: int = 1) -> Table:
    """Return an empty table whose first ``left`` columns are aligned to the left."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number >= left else "left", overflow="fold")
    return table
