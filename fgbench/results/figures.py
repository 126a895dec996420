"""A run's figures: read from run.json, or computed from the records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fgbench.metrics.summary import Summary, summarize
from fgbench.results.run import Run, read_records, trim_of


def stored_summary(folder: Path, info: dict[str, Any]) -> Summary:
    """As the run's ``info`` has it; of a run that was killed before it had one, over the requests that had
    ended. Raises ValueError where those are damaged."""
    if info.get("summary") is not None:
        return Summary.from_dict(info["summary"])
    return summary_of(Run(folder, info, read_records(folder)))


def summary_of(run: Run) -> Summary:
    """As ``fgbench run`` would have ended with them."""
    return summarize(run.records, offered_rate=offered_rate(run.info), trim=trim_of(run.info))


def offered_rate(info: dict[str, Any]) -> float | None:
    """Requests per second the workload asked for on average; None where it did not: in a closed loop, or not
    known."""
    work = info.get("workload") or {}
    process = work.get("arrival_process") or {}
    if "concurrency" in process or not work.get("rate"):
        return None
    rate = float(work["rate"])
    return (rate + float(process["rate_to"])) / 2 if "rate_to" in process else rate
