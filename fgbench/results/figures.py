"""A run's figures, computed anew from its records: also of a run that was killed before it could."""

from __future__ import annotations

from typing import Any

from fgbench.metrics.summary import Summary, summarize
from fgbench.metrics.trimming import Trim
from fgbench.results.run import Run


def summary_of(run: Run) -> Summary:
    """As ``fgbench run`` would have ended with them."""
    return summarize(run.records, offered_rate=offered_rate(run.info), trim=trim_of(run.info))


def trim_of(info: dict[str, Any]) -> Trim:
    """What the run was to leave out of its figures."""
    said = info.get("trim") or {}
    return Trim.parse(said.get("start"), said.get("end"))


def offered_rate(info: dict[str, Any]) -> float | None:
    """Requests per second the workload asked for on average; None where it did not: in a closed loop, or not
    known."""
    work = info.get("workload") or {}
    process = work.get("arrival_process") or {}
    if "concurrency" in process or not work.get("rate"):
        return None
    rate = float(work["rate"])
    return (rate + float(process["rate_to"])) / 2 if "rate_to" in process else rate
