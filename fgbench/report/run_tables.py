"""Shows the figures of one run as a table in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fgbench.metrics.accounts import MachineAccount, MemoryAccount
from fgbench.metrics.conditions import CacheAccount
from fgbench.metrics.metric import METRICS, metric_called
from fgbench.report.marks import Mark, marks_of, signs
from fgbench.report.unequal import Note, unequal
from fgengine.units import number, percent, seconds, size

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from fgbench.metrics.statistics import Distribution
    from fgbench.metrics.summary import Summary

RATE_TOLERANCE = 0.02
"""A note is shown if the sent rate differs from the scheduled rate by a larger share."""
COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")


def summary_table(
    title: str,
    summary: Summary,
    memory: MemoryAccount | None = None,
    machine: MachineAccount | None = None,
    cache: CacheAccount | None = None,
    differences: Sequence[Note] = (),
    marks: Mapping[Mark, str] | None = None,
    gpu_energy: float | None = None,
    is_capped: bool = False,
) -> Group:
    """Return the table that ``fgbench run`` prints at the end: latencies, counts, rates and notes.

    Args:
        title: The title.
        summary: The figures.
        memory: The server's KV memory; None if unknown.
        machine: The machine's other load; None if unknown.
        cache: The server's prefix cache; None if it has none, or if that is unknown.
        differences: Notes on what could not be made equal to other servers.
        marks: What a reader must know, with details. None: what the figures alone tell.
        gpu_energy: Joules that the GPUs used; None if unknown.
        is_capped: Whether the client holds requests back (--max-concurrency), so that it may send late.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("Latency")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for metric in METRICS:
        if metric.section == "latency":
            table.add_row(metric.label, *_cells(summary.distributions.get(metric.key)))
    lag = metric_called("lag")
    table.add_row(lag.label, *_cells(summary.distributions.get(lag.key)), style="dim")

    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(summary, memory, machine, cache):
        facts.add_row(Text(name, style="dim"), value)
    if gpu_energy is not None and summary.output_tokens:
        per_token = number(gpu_energy / summary.output_tokens)
        energy = f"{number(gpu_energy)} J, {per_token} J per output token"
        facts.add_row(Text("energy of the GPUs", style="dim"), energy)
    parts: list[Table | Text] = [table, facts]
    known = marks_of({"status": "complete"}, summary) if marks is None else marks
    notes = [mark.note([detail]) for mark, detail in known.items()] + _notes(summary, is_capped)
    parts += [Text(note, style="yellow") for note in notes]
    parts += [Text(note.text, style="yellow" if note.warns else "dim") for note in differences]
    return Group(*parts)


def run_table(info: dict[str, Any], summary: Summary) -> Group:
    """Return the ``summary_table`` of a run, with a title made from run.json."""
    workload = info.get("workload") or {}
    name = str((info.get("backend") or {}).get("name"))
    title = f"{name}, {info.get('model')}, {workload.get('dataset')}, {load_in_words(workload)}"
    marks = marks_of(info, summary)
    return summary_table(
        title + signs(marks),
        summary,
        MemoryAccount.of(info),
        MachineAccount.of(info),
        CacheAccount.of(info),
        unequal({name: [info]}),
        marks,
        (info.get("server_metrics") or {}).get("gpu_energy_j"),
        info.get("max_concurrency") is not None,
    )


def _notes(summary: Summary, is_capped: bool) -> list[str]:
    """Return further warnings about the figures."""
    notes = []
    sent, scheduled = summary.achieved_rate, summary.scheduled_rate
    if sent and scheduled and not is_capped and abs(sent / scheduled - 1.0) > RATE_TOLERANCE:
        notes.append(
            f"The client sent {number(sent)}/s instead of the scheduled {number(scheduled)}/s "
            f"({sent / scheduled - 1.0:+.1%}), so this is not the requested load. Use a faster client "
            "machine or a lower rate."
        )
    if summary.rejected:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(summary.rejections.items()))
        notes.append(
            f"{summary.rejected} of {summary.requests} requests were rejected ({kinds}). They have no "
            "latency, and goodput counts them as missed. With --max-queue 0, FastGen lets all requests wait "
            "instead."
        )
    if summary.trimmed and not summary.requests:
        notes.append(
            "Trimming left no request, so there are no figures. All requests are saved; use a shorter --trim "
            "and --cool-down."
        )
    return notes


def load_in_words(workload: dict[str, Any]) -> str:
    """Describe the load of run.json's ``workload``: ``2.5/s``, ``gamma cv=2, 2.5/s``."""
    arrivals = str(workload.get("arrivals", "unknown"))
    if "concurrency" in workload.get("arrival_process", {}):
        return f"closed loop of {workload['arrival_process']['concurrency']}"
    rate = float(workload.get("rate") or "nan")
    text = "all at once" if math.isinf(rate) else f"{number(rate, 4)}/s"
    return text if arrivals == "poisson" else f"{arrivals}, {text}"


def _cells(distribution: Distribution | None) -> list[str]:
    if distribution is None:
        return ["-"] * len(COLUMNS)
    return [seconds(getattr(distribution, column)) for column in COLUMNS]


def _facts(
    summary: Summary,
    memory: MemoryAccount | None,
    machine: MachineAccount | None,
    cache: CacheAccount | None,
) -> list[tuple[str, str]]:
    rejected = f", {percent(summary.rejected_share)} rejected"
    failed = "".join(f"; failed: {count} x {kind}" for kind, count in sorted(summary.errors.items()))
    facts = [
        ("requests", f"{summary.ok} of {summary.requests} answered in full{rejected}{failed}"),
        (
            "rate",
            f"{_offered(summary.offered_rate)}{number(summary.achieved_rate)}/s sent, "
            f"{number(summary.request_throughput)}/s answered",
        ),
        (
            "throughput",
            f"{number(summary.output_token_throughput)} output tokens/s, "
            f"{number(summary.total_token_throughput)} tokens/s with prompts",
        ),
        (
            "volume",
            f"{summary.prompt_tokens:,} prompt + {summary.output_tokens:,} output tokens "
            f"in {seconds(summary.duration_s)}",
        ),
    ]
    if summary.window is not None:
        first, last = map(seconds, summary.window)
        facts.append(
            ("left out", f"{summary.trimmed} requests scheduled before {first} or after {last} of the load")
        )
    if summary.server_requests:
        facts.append(("in the server", _server_report(summary)))
    if memory is not None:
        facts.append(("KV memory", _memory_report(memory)))
    if machine is not None and machine.busy:
        facts.append(("the machine", machine.describe()))
    if cache is not None and cache.hit_share:
        facts.append(("prefix cache", cache.describe()))
    return facts


def _memory_report(memory: MemoryAccount) -> str:
    pressure = "never under pressure"
    if memory.pressure_seconds > 0.0:
        pressure = (
            f"under pressure for {seconds(memory.pressure_seconds)} of {seconds(memory.seconds)} "
            "(nothing new started)"
        )
    prefix = f"mean of {memory.replicas} replicas: " if memory.replicas > 1 else ""
    return f"{prefix}{pressure}; device idle for copies {percent(memory.copy_wait_share)} of the time"


def _offered(rate: float | None) -> str:
    if rate is None:
        return ""
    return "all at once offered, " if math.isinf(rate) else f"{number(rate)}/s offered, "


def _server_report(summary: Summary) -> str:
    """Return what the server reported: totals of counts and bytes, means of seconds."""
    totals = summary.server_totals
    parts = []
    if "preemptions" in totals:
        parts.append(f"{number(totals['preemptions'])} preemptions")
    if "bytes_moved" in totals:
        parts.append(f"{size(totals['bytes_moved'])} KV moved")
    means = [
        f"{name} {seconds(total / summary.server_requests)}"
        for name, total in totals.items()
        if name not in ("preemptions", "bytes_moved")
    ]
    if means:
        parts.append("mean of a request: " + ", ".join(means))
    return "; ".join(parts)
