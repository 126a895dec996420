"""Exports a comparison: nested plain values for JSON, a tidy DataFrame for Python and CSV. Pure.

Units are seconds, requests per second, bytes, and shares of 1. Ratios are to the baseline at the same rate
(in closed loops: at the same concurrency), paired by seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fgbench.metrics.crossing import Range
from fgbench.metrics.statistics import Estimate, Interval, PairedRatio
from fgbench.report.comparison import Comparison, ComparisonPoint, Entry
from fgbench.report.marks import ANALYTIC, CACHED, CLIENT, CLUMPED, DISTURBED, OVERLOADED, UNJUDGED
from fgbench.report.notes import notes
from fgbench.report.objectives import TARGET, Objective
from fgbench.report.pairing import WorkloadKey

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("model", "dataset", "num_prompts", "arrivals", "baseline", "label", "rate", "concurrency", "seeds"),
    *("complete", "overloaded", "disturbed", "cached", "clumped", "client_was_the_limit"),
    "analytic_device",
    *("metric", "statistic", "value", "low", "high"),
    *("ratio", "ratio_low", "ratio_high", "verdict"),
)
"""Columns of the DataFrame and the CSV, which have one row per figure. Closed loops have a concurrency
instead of a rate. ``low`` and ``high`` are the interval over seeds. For a rate outside the measured ones,
they are the known bound."""
_NUMBERS = ("rate", "concurrency", "value", "low", "high", "ratio", "ratio_low", "ratio_high")
_TYPES = {
    **dict.fromkeys(_NUMBERS, "float64"),
    **dict.fromkeys(("num_prompts", "seeds"), "Int64"),
    **dict.fromkeys(("complete", "overloaded", "disturbed", "cached", "clumped"), "boolean"),
    "client_was_the_limit": "boolean",
}
"""Types of the columns that are not text. A row for a backend at all rates has no seeds and no status."""


def comparison_json(comparison: Comparison, objectives: Sequence[Objective]) -> dict[str, Any]:
    """Return the comparison as plain values for strict JSON; an infinite rate becomes "inf"."""
    return {
        "workload": _workload(comparison.workload) | {"seeds": comparison.seeds},
        "baseline": comparison.baseline,
        "points": [
            {
                "label": point.label,
                **_level(comparison, point),
                "seeds": point.seeds,
                "complete": point.complete,
                **_status(point),
                "figures": _figures(comparison, point),
            }
            for level in comparison.levels
            for point in comparison.at(level)
        ],
        "notes": [note.text for note in notes(comparison) if note.warns],
        "slos": [_objective(objective) for objective in objectives],
        "runs": [
            _run(comparison, entry)
            for level in comparison.levels
            for point in comparison.at(level)
            for entry in point.entries
        ],
    }


def _status(point: ComparisonPoint) -> dict[str, Any]:
    """Return what the marks of a point say."""
    return {
        "overloaded": True if OVERLOADED in point.marks else None if UNJUDGED in point.marks else False,
        "disturbed": DISTURBED in point.marks,
        "cached": CACHED in point.marks,
        "clumped": CLUMPED in point.marks,
        "client_was_the_limit": CLIENT in point.marks,
        "analytic_device": point.marks.get(ANALYTIC),
    }


def comparison_frame(judged: Iterable[tuple[Comparison, Sequence[Objective]]]) -> pd.DataFrame:
    """Return the figures of all comparisons: one row per figure, with the columns ``COLUMNS``."""
    import pandas as pd

    rows = [row for each in judged for row in comparison_rows(*each)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(_TYPES)


def comparison_rows(comparison: Comparison, objectives: Sequence[Objective]) -> Iterator[dict[str, Any]]:
    """Yield one row per figure, with the keys ``COLUMNS``.

    In rows of metrics that depend on an SLO, ``statistic`` is the SLO.
    """
    common = _workload(comparison.workload) | {"baseline": comparison.baseline}
    for level in comparison.levels:
        for point in comparison.at(level):
            here = common | {
                "label": point.label,
                comparison.axis.name: point.level,
                "seeds": len(point.seeds),
                "complete": point.complete,
                **_status(point),
            }
            for cell in comparison.cells(point):
                yield here | {
                    "metric": cell.quantity.metric,
                    "statistic": cell.quantity.statistic,
                    "value": cell.value,
                    **_ends(cell.interval),
                    "ratio": cell.ratio.value if cell.ratio else None,
                    **_ends(cell.ratio.interval if cell.ratio else None, "ratio_"),
                    "verdict": cell.verdict,
                }
            for objective in objectives:
                for metric in ("attainment", "goodput", "window_goodput"):
                    if (estimate := getattr(objective, metric)(point)) is not None:
                        figure = {"metric": metric, "statistic": str(objective.slo), "value": estimate.value}
                        yield here | figure | _ends(estimate.interval)
    for objective in objectives:
        for label in comparison.labels:
            reached = objective.ratio(label)
            yield common | {
                "label": label,
                "metric": f"{comparison.axis.name}_at_slo",
                "statistic": str(objective.slo),
                **_range(objective.rate(label)),
                **{f"ratio{key}": value for key, value in _range(reached, "", "_low", "_high").items()},
                "verdict": objective.verdict(label),
            }
            yield common | {
                "label": label,
                "metric": f"{comparison.axis.name}_at_{TARGET:.0%}_attainment",
                "statistic": str(objective.slo),
                **_range(objective.attained_up_to(label)),
            }


def _workload(workload: WorkloadKey) -> dict[str, Any]:
    return {
        "model": workload.model,
        "dataset": workload.dataset,
        "num_prompts": workload.num_prompts,
        "arrivals": workload.arrivals + (f" ({workload.details})" if workload.details else ""),
    }


def _figures(comparison: Comparison, point: ComparisonPoint) -> dict[str, Any]:
    """Return ``{metric: {statistic: figure}}``; a figure without statistics has the statistic "value"."""
    figures: dict[str, Any] = {}
    for cell in comparison.cells(point):
        figures.setdefault(cell.quantity.metric, {})[cell.quantity.statistic or "value"] = {
            "value": cell.value,
            **_ends(cell.interval),
            "ratio": _ratio(cell.ratio),
            "verdict": cell.verdict,
        }
    return figures


def _objective(objective: Objective) -> dict[str, Any]:
    comparison = objective.comparison
    return {
        "slo": str(objective.slo),
        "attainment_target": TARGET,
        "backends": [
            {
                "label": label,
                comparison.axis.name: _range(objective.rate(label)),
                "above_capacity": objective.is_above_capacity(label),
                "ratio": _range(objective.ratio(label)),
                "ratio_over_seeds": _ratio(objective.paired(label)),
                "verdict": objective.verdict(label),
                f"{comparison.axis.name}_at_target": _range(objective.attained_up_to(label)),
            }
            for label in comparison.labels
        ],
        "points": [
            {
                "label": point.label,
                **_level(comparison, point),
                "met": objective.met_by(point),
                "attainment": _estimate(objective.attainment(point)),
                "goodput": _estimate(objective.goodput(point)),
                "window_goodput": _estimate(objective.window_goodput(point)),
            }
            for level in comparison.levels
            for point in comparison.at(level)
        ],
    }


def _run(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    return {
        "label": entry.label,
        **_level(comparison, entry),
        "seed": entry.seed,
        "path": str(entry.run.path),
        "status": entry.run.status,
        "overloaded": entry.summary.overloaded,
        "slowdown": None if entry.slowdown is None else entry.slowdown.to_dict(),
        "fairness": entry.fairness,
        "memory": None if entry.memory is None else asdict(entry.memory),
        "machine": None if entry.machine is None else entry.machine.to_json(),
        "prefix_cache": None if entry.cache is None else entry.cache.to_json(),
        "summary": entry.summary.to_dict(),
    }


def _level(comparison: Comparison, of: ComparisonPoint | Entry) -> dict[str, float | str]:
    return {comparison.axis.name: "inf" if math.isinf(of.level) else of.level}


def _estimate(estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {"value": None, **_ends(None)}
    return {"value": estimate.value, **_ends(estimate.interval)}


def _ratio(ratio: PairedRatio | None) -> dict[str, Any] | None:
    return None if ratio is None else {"value": ratio.value, "seeds": ratio.seeds, **_ends(ratio.interval)}


def _ends(interval: Interval | None, prefix: str = "") -> dict[str, float | None]:
    low, high = (interval.low, interval.high) if interval else (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high}


def _range(
    figure: Range | None, value: str = "value", low: str = "low", high: str = "high"
) -> dict[str, float | None]:
    """Return the figure under ``value`` if it is known exactly, else its known bounds."""
    if figure is None or figure.exact is not None:
        return {value: figure.exact if figure else None, low: None, high: None}
    return {
        value: None,
        low: figure.low if figure.low > 0.0 else None,
        high: figure.high if math.isfinite(figure.high) else None,
    }
