"""A run's figures, computed anew from its records: also of a run that was killed before it could."""

from __future__ import annotations

from typing import Any

from fgbench.metrics.summary import Summary, summarize
from fgbench.results.run import Run


def summary_of(run: Run) -> Summary:
    """As ``fgbench run`` would have ended with them."""
    return summarize(run.records, offered_rate=offered_rate(run.info))


def offered_rate(info: dict[str, Any]) -> float | None:
    """Requests per second the workload asked for; None where it did not: in a closed loop, or not known."""
    work = info.get("workload") or {}
    if "concurrency" in (work.get("arrival_process") or {}) or not work.get("rate"):
        return None
    return float(work["rate"])
