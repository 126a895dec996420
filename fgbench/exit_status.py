"""Decides the exit code of a run, and gives the reason. Has no side effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fgbench.exit_codes import CLIENT_LIMIT, DONE, FAILED, INTERRUPTED, TOO_MANY_ERRORS
from fgbench.metrics.summary import Summary

LAG_SECONDS = 0.05
"""Client lag up to which the client is not the limit, in seconds."""
LAG_SHARE = 0.05
"""Client lag up to which the client is not the limit, as a share of the mean TTFT."""
WORST_FIRST = (INTERRUPTED, FAILED, TOO_MANY_ERRORS, CLIENT_LIMIT, DONE)


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """Exit code of a run, and its reason."""

    code: int
    sentence: str = ""
    """The reason; empty for code 0."""

    @property
    def measured(self) -> bool:
        """Whether the complete load was measured. The client may have been the limit."""
        return self.code in (DONE, CLIENT_LIMIT)


def exit_status_of(info: dict[str, Any], max_error_rate: float) -> ExitStatus:
    """Return the exit status of a run.

    Args:
        info: The content of its run.json.
        max_error_rate: Share of failed requests (0 to 1) above which the run counts as failed.
    """
    status = info.get("status")
    if status == "interrupted":
        ended, planned = (info.get("summary") or {}).get("requests", 0), info["workload"]["num_prompts"]
        return ExitStatus(INTERRUPTED, f"Interrupted: {ended} of {planned} requests had ended and are saved.")
    if status != "complete":
        return ExitStatus(FAILED, str(info.get("error") or "the run was killed before it ended"))
    summary = Summary.from_dict(info["summary"])
    if errors := too_many_errors(summary, max_error_rate):
        return ExitStatus(TOO_MANY_ERRORS, errors)
    if limit := client_was_the_limit(info, summary):
        return ExitStatus(CLIENT_LIMIT, limit)
    return ExitStatus(DONE)


def client_was_the_limit(info: Mapping[str, Any], summary: Summary) -> str | None:
    """Return a sentence if the client sent requests too late to measure the server, else None.

    With --max-concurrency the client is meant to send late, so it is not judged. Otherwise, too late means
    that the p99 lag is above 50 ms and above 5 % of the mean TTFT. Below 50 ms the operating system's
    scheduler can be the cause. Below 5 % the lag does not change the figures.
    """
    lag, ttft = summary.figure("lag", "p99"), summary.figure("ttft")
    if info.get("max_concurrency") is not None:
        return None
    if lag is None or ttft is None or lag <= LAG_SECONDS or lag <= LAG_SHARE * ttft:
        return None
    return (
        f"The client, not the server, was the limit: it sent 1 % of the requests {lag * 1000:.0f} ms "
        f"or more after their time (mean TTFT {ttft * 1000:.0f} ms). "
        "Give the client its own cores, or lower the rate."
    )


def too_many_errors(summary: Summary, allowed: float) -> str | None:
    """Return a sentence if more than the share ``allowed`` (0 to 1) of the requests failed, else None."""
    if summary.failed <= allowed * summary.requests:
        return None
    kinds = ", ".join(f"{count} x {kind}" for kind, count in summary.errors.items())
    return f"{summary.failed} of {summary.requests} requests failed ({kinds}); {allowed:.1%} are allowed."


def worst(codes: list[int]) -> int:
    """Return the worst exit code of several runs; 0 if there are none."""
    return min(codes, key=WORST_FIRST.index, default=DONE)
