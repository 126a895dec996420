"""A comparison as a table for the terminal, and as plain values for other programs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fgbench.report.comparison import METRICS, STATISTICS, THROUGHPUTS, Comparison, Entry, figure
from fgbench.report.tables import OVERLOAD_MARK, OVERLOAD_NOTE
from fgbench.report.units import number, seconds

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

INCOMPLETE_MARK = "◌"
INCOMPLETE_NOTE = (
    f"{INCOMPLETE_MARK} not a complete run, and not in the plot: requests that had not ended are missing, "
    "the slow ones above all."
)
NOTABLE = 0.05
"""Ratios within 5% of 1 are not coloured."""


def comparison_tables(comparison: Comparison) -> Group:
    """One table a rate: figures down, backends across, each with its ratio to the baseline."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Table | Text] = [Text(comparison.workload.describe(), style="bold")]
    if len(comparison.labels) > 1:
        parts.append(Text(f"x: ratio to {comparison.baseline} at the same rate", style="dim"))
    for rate in comparison.rates:
        entries = comparison.at(rate)
        table = Table(
            title=_rate(rate), title_justify="left", title_style="bold", show_edge=False, pad_edge=False
        )
        table.add_column("", overflow="fold")
        table.add_column("", overflow="fold")
        for entry in entries:  # folded where it is narrow: a digit cut off would be another number
            table.add_column(f"{entry.label}{marks(entry)}", justify="right", overflow="fold")
        for metric, name in METRICS:
            for statistic in STATISTICS:
                table.add_row(
                    name if statistic == STATISTICS[0] else "",
                    statistic,
                    *(_cell(comparison, entry, metric, statistic) for entry in entries),
                    end_section=statistic == STATISTICS[-1],
                )
        for metric, name in THROUGHPUTS:
            table.add_row(name, "", *(_cell(comparison, entry, metric) for entry in entries))
        answered = (f"{entry.summary.ok} of {comparison.workload.num_prompts}" for entry in entries)
        table.add_row("answered", "", *answered)
        parts += [Text(), table]
    parts.append(Text())
    if any(entry.summary.overloaded for entry in comparison.entries):
        parts.append(Text(OVERLOAD_NOTE, style="yellow"))
    if not all(entry.run.complete for entry in comparison.entries):
        parts.append(Text(INCOMPLETE_NOTE, style="yellow"))
    return Group(*parts)


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Strict JSON: an infinite rate is "inf"; seconds; ratios are to the baseline at the same rate."""
    workload = comparison.workload
    return {
        "workload": {
            "model": workload.model,
            "dataset": workload.dataset,
            "num_prompts": workload.num_prompts,
            "seed": workload.seed,
            "arrivals": workload.arrivals,
        },
        "baseline": comparison.baseline,
        "runs": [
            {
                "label": entry.label,
                "rate": "inf" if math.isinf(entry.rate) else entry.rate,
                "path": str(entry.run.path),
                "complete": entry.run.complete,
                "overloaded": entry.summary.overloaded,
                "ratios": {
                    metric: {
                        statistic: comparison.ratio(entry, metric, statistic) for statistic in STATISTICS
                    }
                    for metric, _ in METRICS
                }
                | {metric: comparison.ratio(entry, metric) for metric, _ in THROUGHPUTS},
                "summary": entry.summary.to_dict(),
            }
            for rate in comparison.rates
            for entry in comparison.at(rate)
        ],
    }


def marks(entry: Entry) -> str:
    overloaded = f" {OVERLOAD_MARK}" if entry.summary.overloaded else ""
    return overloaded + ("" if entry.run.complete else f" {INCOMPLETE_MARK}")


def _rate(rate: float) -> str:
    return "all requests at once" if math.isinf(rate) else f"{number(rate)} requests / s"


def _cell(comparison: Comparison, entry: Entry, metric: str, statistic: str | None = None) -> Text:
    from rich.text import Text

    value = figure(entry.summary, metric, statistic)
    is_latency = statistic is not None
    cell = Text(seconds(value) if is_latency else number(value))
    ratio = comparison.ratio(entry, metric, statistic)
    if ratio is not None:
        better = ratio < 1.0 if is_latency else ratio > 1.0
        style = "dim" if abs(ratio - 1.0) <= NOTABLE else "green" if better else "red"
        cell.append(f"  {number(ratio, 2) if ratio >= 10.0 else f'{ratio:.2f}'}x", style=style)
    elif len(comparison.labels) > 1:
        cell.append("       ")
    return cell
