"""The figures of one run as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fgbench.report.units import number, seconds, size

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from fgbench.metrics.statistics import Distribution
    from fgbench.metrics.summary import Summary

OVERLOAD_MARK = "▲"
OVERLOAD_NOTE = (
    f"{OVERLOAD_MARK} above capacity: a backlog grew while requests came, so means and tails depend on how "
    "many requests were sent. Compare such runs only at the same number of prompts."
)

LATENCIES = (
    ("ttft", "TTFT"),
    ("tpot", "TPOT"),
    ("itl", "ITL"),
    ("jct", "JCT"),
    ("normalized_latency", "JCT / token"),
)
COLUMNS = ("mean", "p50", "p90", "p95", "p99", "max")


def summary_table(title: str, summary: Summary) -> Group:
    """What ``fgbench run`` ends with: latencies from the scheduled moment, then counts and rates."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("Latency")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for attribute, name in LATENCIES:
        table.add_row(name, *_cells(getattr(summary, attribute)))
    table.add_row("client's lag", *_cells(summary.lag), style="dim")

    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(summary):
        facts.add_row(Text(name, style="dim"), value)
    parts: list[Table | Text] = [table, facts]
    if summary.overloaded:
        parts.append(Text(OVERLOAD_NOTE, style="yellow"))
    return Group(*parts)


def load_in_words(workload: dict[str, Any]) -> str:
    """How requests came, of run.json's ``workload``: ``2.5/s``, ``gamma cv=2, 2.5/s``."""
    arrivals = str(workload["arrivals"])
    if "concurrency" in workload.get("arrival_process", {}):
        return f"closed loop of {workload['arrival_process']['concurrency']}"
    rate = f"{float(workload['rate']):g}/s"
    return rate if arrivals == "poisson" else f"{arrivals}, {rate}"


def _cells(distribution: Distribution | None) -> list[str]:
    if distribution is None:
        return ["-"] * len(COLUMNS)
    return [seconds(getattr(distribution, column)) for column in COLUMNS]


def _facts(summary: Summary) -> list[tuple[str, str]]:
    failed = "".join(f"; failed: {count} x {kind}" for kind, count in sorted(summary.errors.items()))
    facts = [
        ("requests", f"{summary.ok} of {summary.requests} answered in full{failed}"),
        (
            "rate",
            f"{number(summary.offered_rate)}/s offered, {number(summary.achieved_rate)}/s sent, "
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
    if summary.server_requests:
        facts.append(("in the server", _server_account(summary)))
    return facts


def _server_account(summary: Summary) -> str:
    """Totals of counts and bytes, means of seconds: all that the server accounted for."""
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
