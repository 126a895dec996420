"""What the page of a comparison contains, as plain values for JSON. Pure.

Texts are plain: the page escapes them. Times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from fgbench.metrics.latency import jct, normalized_latency, ttft
from fgbench.metrics.lengths import by_length
from fgbench.metrics.metric import METRICS
from fgbench.metrics.record import STATES, RequestRecord
from fgbench.metrics.statistics import jain_index
from fgbench.report.comparison import Cell, Comparison, ComparisonPoint, Entry
from fgbench.report.headline import headline
from fgbench.report.marks import OVERLOADED, marks_of, signs
from fgbench.report.notes import VERDICT_MARKS, marks, notes, title
from fgbench.report.objectives import Objective
from fgbench.report.pictures.contents import cumulated
from fgbench.report.pictures.picture import COLOURS, colour, picked
from fgbench.report.pictures.styles import styles_of
from fgbench.report.quantities import HEADLINES, LATENCIES, Quantity, outcomes, quantity_called
from fgbench.results.server_samples import Samples, hit_shares, per_second, series
from fgengine.units import times

PAUSE = 3.0
"""A gap between two tokens is a pause if it is this many times as long as the request's median gap."""
MAX_SAMPLES = 1_000
"""Most samples of a server's figures of one run; of more, only every second or third is shown, ..."""
MAX_REQUESTS = 10_000
"""Most requests that the page shows one by one, so that it stays below 6 MB."""
CURVES = ("normalized_latency", "ttft", "tpot", "jct")
STATISTICS = ("mean", "p95", "p99")
SPREAD = {"jct": jct, "ttft": ttft, "normalized_latency": normalized_latency}
COLUMNS = (*HEADLINES, *(q for q in LATENCIES if q.statistic == "p99" and q.metric in CURVES))


@dataclass(frozen=True, slots=True)
class Page:
    """The contents of a page."""

    title: str
    sections: list[dict[str, Any]]
    """One for each comparison."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"title": self.title, "sections": self.sections}


def page_of(
    judged: Sequence[tuple[Comparison, Sequence[Objective]]],
    heading: str,
    samples_of: Callable[[Path], Samples] = lambda folder: [],
) -> Page:
    """Return the contents of the page of some comparisons, each with its SLOs.

    ``samples_of``: returns the samples of the server's own figures in a run folder.
    """
    room = MAX_REQUESTS
    sections = []
    for comparison, objectives in judged:
        section = _section(comparison, objectives)
        section["runs"], room = _timelines(comparison, room, samples_of)
        sections.append(section)
    return Page(heading, sections)


def _section(comparison: Comparison, objectives: Sequence[Objective]) -> dict[str, Any]:
    style = styles_of(comparison)
    labels = comparison.labels
    return {
        "title": title(comparison),
        "axis": comparison.axis.title,
        "baseline": comparison.names[comparison.baseline],
        "headline": headline(comparison, objectives)[1:],
        "notes": [{"text": note.text, "warns": note.warns} for note in notes(comparison)],
        "backends": [
            {
                "name": comparison.names[label],
                "colour": colour(style[label]),
                "style": style[label],
                "repeat": style[label] // len(COLOURS),
            }
            for label in labels
        ],
        "table": _table(comparison),
        "slos": [_objective(objective) for objective in objectives],
        "curves": {
            f"{metric} {statistic}": {
                "title": f"{statistic} {quantity_called(metric, statistic).name}",
                "lines": _curves(comparison, quantity_called(metric, statistic)),
            }
            for statistic in STATISTICS
            for metric in CURVES
        },
        "spread": [_spread(comparison, level) for level in picked(_complete_levels(comparison))],
        "settings": [_settings(comparison, label) for label in labels],
    }


def _complete_levels(comparison: Comparison) -> list[float]:
    return [level for level in comparison.levels if any(point.complete for point in comparison.at(level))]


def _table(comparison: Comparison) -> dict[str, Any]:
    """Return the table of figures: each cell has its text, its number, and its verdict."""
    quantities = (*COLUMNS, *outcomes(natural_lengths=comparison.natural_lengths))
    columns = [f"{quantity.statistic or ''} {quantity.name}".strip() for quantity in quantities]
    rows = []
    for level in comparison.levels:
        for point in comparison.at(level):
            cells = [_cell(quantity, comparison.cell(point, quantity)) for quantity in quantities]
            name = comparison.names[point.label] + marks(point)
            load = {"text": comparison.load_in_words(level), "value": None if math.isinf(level) else level}
            answered = {"text": point.answered, "value": None}
            rows.append([load, {"text": name, "value": None}, *cells, answered])
    return {"columns": [comparison.axis.name, "backend", *columns, "answered"], "rows": rows}


def _cell(quantity: Quantity, cell: Cell | None) -> dict[str, Any]:
    if cell is None:
        return {"text": "-", "value": None}
    text = quantity.show(cell.value)
    if cell.interval:
        text += f" [{quantity.show(cell.interval.low)} – {quantity.show(cell.interval.high)}]"
    if cell.ratio:
        mark = VERDICT_MARKS.get(cell.verdict or "", "")
        text += f" ({times(cell.ratio.value)}{' ' if mark else ''}{mark})"
    return {"text": text, "value": cell.value, "verdict": cell.verdict or ""}


def _objective(objective: Objective) -> dict[str, Any]:
    comparison = objective.comparison
    return {
        "slo": str(objective.slo),
        "rows": [
            {
                "backend": comparison.names[label],
                "met": reached.describe(comparison.axis.unit) if (reached := objective.rate(label)) else "-",
                "above": objective.is_above_capacity(label),
                "ratio": ratio.describe("x") if (ratio := objective.ratio(label)) else "-",
                "verdict": objective.verdict(label) or "",
            }
            for label in comparison.labels
        ],
    }


def _curves(comparison: Comparison, quantity: Quantity) -> list[dict[str, Any]]:
    lines = []
    for label in comparison.labels:
        points = [point for point in comparison.of(label) if point.complete and math.isfinite(point.level)]
        known = [(point, cell) for point in points if (cell := comparison.cell(point, quantity)) is not None]
        lines.append(
            {
                "backend": comparison.names[label],
                "x": [point.level for point, _ in known],
                "y": [_short(cell.value) for _, cell in known],
                "low": [_short(cell.interval.low) if cell.interval else None for _, cell in known],
                "high": [_short(cell.interval.high) if cell.interval else None for _, cell in known],
                "above": [OVERLOADED in point.marks for point, _ in known],
                "marks": [signs(point.marks).strip() for point, _ in known],
            }
        )
    return lines


def _spread(comparison: Comparison, level: float) -> dict[str, Any]:
    """Return the distributions at a level, and the latencies by output length."""
    found: dict[str, Any] = {"load": comparison.load_in_words(level), "cdf": {}, "lengths": []}
    points = [point for point in comparison.at(level) if point.complete]
    for metric, of in SPREAD.items():
        found["cdf"][metric] = []
        for point in points:
            values = [value for record in _records(point) if (value := of(record)) is not None]
            xs, ys = cumulated(values)
            found["cdf"][metric].append(
                {
                    "backend": comparison.names[point.label],
                    "x": list(map(_short, xs)),
                    "y": list(map(_short, ys)),
                }
            )
    for point in points:
        found["lengths"].append({"backend": comparison.names[point.label], **_by_length(_records(point))})
    return found


def _records(point: ComparisonPoint) -> list[RequestRecord]:
    return [record for entry in point.counted for record in entry.records if record.ok]


def _by_length(records: Iterable[RequestRecord]) -> dict[str, Any]:
    """Return the mean JCT and normalized latency of the requests in each bucket of output lengths."""
    buckets = by_length(records)
    return {
        "buckets": [bucket.name for bucket in buckets],
        "jct": [_short(bucket.jct) for bucket in buckets],
        "normalized_latency": [_short(bucket.normalized_latency) for bucket in buckets],
        "count": [bucket.requests for bucket in buckets],
    }


def _timelines(
    comparison: Comparison, room: int, samples_of: Callable[[Path], Samples]
) -> tuple[list[dict[str, Any]], int]:
    """Return the requests of runs, as long as there is room for them, and the room that is left."""
    found = []
    for level in picked(_complete_levels(comparison)):
        for point in comparison.at(level):
            entry = point.counted[0]
            if len(entry.records) <= room:
                room -= len(entry.records)
                server = _server_figures(samples_of(entry.run.path))
                found.append({**_timeline(comparison, entry), "server": server})
    return found, room


def _timeline(comparison: Comparison, entry: Entry) -> dict[str, Any]:
    records = sorted(entry.records, key=lambda record: record.scheduled)
    load = comparison.load_in_words(entry.level)
    return {
        "name": f"{comparison.names[entry.label]}, {load}, seed {entry.seed}",
        "marks": signs(marks_of(entry.run.info, entry.summary)).strip(),
        "scheduled": [_milli(record.scheduled) for record in records],
        "first": [_milli(record.first_token) for record in records],
        "last": [_milli(record.last_token) for record in records],
        "prefill": [_milli(_prefill_start(record)) for record in records],
        "pauses": [
            [position, _milli(start), _milli(end)]
            for position, record in enumerate(records)
            for start, end in pauses(record)
        ],
        "finished": [_milli(record.finished) for record in records],
        "tokens": [record.output_tokens for record in records],
        "outcome": ["" if record.ok else (record.error or record.rejected or "")[:60] for record in records],
        "states": {
            state: [_milli((record.server or {}).get(state)) for record in records]
            for state in STATES
            if any(record.server and state in record.server for record in records)
        },
        "users": _users(records),
    }


def _prefill_start(record: RequestRecord) -> float | None:
    """Return when the prefill began, if it ended with the first token; None: not reported."""
    seconds = (record.server or {}).get("prefill")
    if seconds is None or record.first_token is None:
        return None
    return max(record.scheduled, record.first_token - seconds)


def pauses(record: RequestRecord) -> list[tuple[float, float]]:
    """Return when a request was preempted after its first token: start and end of each pause, in seconds.

    The server reports how often it preempted the request. Each preemption makes one long gap between two
    tokens. So the pauses are the longest gaps, as many as there were preemptions, if they are clearly longer
    than a step. A preemption before the first
    token has no such gap.
    """
    preemptions = int((record.server or {}).get("preemptions", 0))
    gaps = list(pairwise(record.token_times))
    if not preemptions or len(gaps) < 2:
        return []
    typical = median(end - start for start, end in gaps)
    longest = sorted(gaps, key=lambda gap: gap[0] - gap[1])[:preemptions]
    return sorted((start, end) for start, end in longest if end - start > PAUSE * typical)


def _server_figures(samples: Samples) -> dict[str, Any]:
    """Return what the server reported over time: for each group of figures that it has, its lines."""
    groups: dict[str, dict[str, list[float | None]]] = {
        "requests": {name: series(samples, name) for name in ("running", "waiting", "swapped")},
        "KV memory (share used)": {
            pool: series(samples, f"{pool}_used_share") for pool in ("device", "host")
        },
        "events per second": {
            name: per_second(samples, key)
            for name, key in (("preemptions", "preemptions"), ("requests finished", "finished"))
        },
        "tokens per second": {"output tokens": per_second(samples, "generated_tokens")},
        "prefix cache (share found)": {"prompt tokens": hit_shares(samples)},
        "power of the GPUs (W)": {"power": series(samples, "gpu_power_w")},
    }
    step = -(-len(samples) // MAX_SAMPLES) or 1
    shown = {
        group: {
            name: [None if value is None else _short(value) for value in values[::step]]
            for name, values in lines.items()
            if any(value is not None for value in values)
        }
        for group, lines in groups.items()
    }
    return {
        "at": [sample.get("at", 0.0) for sample in samples][::step],
        "groups": {group: lines for group, lines in shown.items() if lines},
    }


def _users(records: Sequence[RequestRecord]) -> list[dict[str, Any]]:
    """Return figures for each user; empty if the load has only one."""
    by_user: dict[str, list[RequestRecord]] = {}
    for record in records:
        by_user.setdefault(record.user, []).append(record)
    if len(by_user) < 2:
        return []
    rows: list[dict[str, Any]] = []
    for user, some in by_user.items():
        per_token = [
            value for record in some if record.ok and (value := normalized_latency(record)) is not None
        ]
        first = [value for record in some if record.ok and (value := ttft(record)) is not None]
        rows.append(
            {
                "user": user,
                "requests": len(some),
                "tokens": sum(record.output_tokens for record in some),
                "normalized_latency": sum(per_token) / len(per_token) if per_token else None,
                "ttft": sum(first) / len(first) if first else None,
            }
        )
    fairness = jain_index([row["normalized_latency"] for row in rows if row["normalized_latency"]])
    return [*sorted(rows, key=lambda row: -int(row["requests"])), {"user": "", "fairness": fairness}]


def _settings(comparison: Comparison, label: str) -> dict[str, Any]:
    """Return what is known about a backend and the machine of its first run."""
    info = comparison.of(label)[0].entries[0].run.info
    backend, machine = info.get("backend") or {}, info.get("environment") or {}
    server = info.get("server") or {}
    items = {
        "policy": backend.get("policy"),
        "endpoint": backend.get("endpoint"),
        **(backend.get("settings") or {}),
        "command": " ".join(map(str, server.get("command") or [])) or None,
        **{
            f"machine: {key}": machine.get(key)
            for key in ("cpu", "cores", "platform", "python", "git_commit")
        },
        "started": info.get("started"),
    }
    return {
        "backend": comparison.names[label],
        "items": [
            [str(key), str(value)[:2000]] for key, value in items.items() if value not in (None, "", {})
        ],
    }


def definitions() -> list[dict[str, str]]:
    """Return name and definition of the latencies."""
    return [
        {"name": metric.label, "definition": metric.definition}
        for metric in METRICS
        if metric.section == "latency"
    ]


def _short(value: float) -> float:
    """Return the number with five significant digits, which need fewer bytes."""
    return float(f"{value:.5g}")


def _milli(value: float | None) -> float | None:
    """Return seconds rounded to milliseconds."""
    return None if value is None else round(value, 3)
