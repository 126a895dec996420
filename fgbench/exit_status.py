"""How a run went: the exit code it deserves, and why. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fgbench.exit_codes import CLIENT_LIMIT, DONE, FAILED, INTERRUPTED, TOO_MANY_ERRORS
from fgbench.metrics.summary import Summary

LAG_SECONDS = 0.05
LAG_SHARE = 0.05
WORST_FIRST = (INTERRUPTED, FAILED, TOO_MANY_ERRORS, CLIENT_LIMIT, DONE)


@dataclass(frozen=True, slots=True)
class ExitStatus:
    code: int
    sentence: str = ""
    """Empty where all is well."""

    @property
    def measured(self) -> bool:
        """Whether the figures are those of the whole load: the client may have been the limit."""
        return self.code in (DONE, CLIENT_LIMIT)


def exit_status_of(info: dict[str, Any], max_error_rate: float) -> ExitStatus:
    """Of a run by its run.json. ``max_error_rate``: share of failed requests above which it is no good."""
    status = info.get("status")
    if status == "interrupted":
        ended, planned = (info.get("summary") or {}).get("requests", 0), info["workload"]["num_prompts"]
        return ExitStatus(INTERRUPTED, f"Interrupted: {ended} of {planned} requests had ended and are kept.")
    if status != "complete":
        return ExitStatus(FAILED, str(info.get("error") or "the run was killed before it ended"))
    summary = Summary.from_dict(info["summary"])
    if errors := too_many_errors(summary, max_error_rate):
        return ExitStatus(TOO_MANY_ERRORS, errors)
    if limit := client_was_the_limit(summary):
        return ExitStatus(CLIENT_LIMIT, limit)
    return ExitStatus(DONE)


def client_was_the_limit(summary: Summary) -> str | None:
    """A sentence when the requests left so late that the figures are the client's, else None.

    Late is a p99 lag above 50 ms that is also more than 5 % of the mean TTFT: below the first the
    scheduling of the operating system decides, below the second the figures are not touched.
    """
    lag, ttft = summary.figure("lag", "p99"), summary.figure("ttft")
    if lag is None or ttft is None or lag <= LAG_SECONDS or lag <= LAG_SHARE * ttft:
        return None
    return (
        f"The client, not the server, was the limit: 1 % of the requests left {lag * 1000:.0f} ms "
        f"or more after their time (mean TTFT {ttft * 1000:.0f} ms). "
        "Give the client its own cores, or lower the rate."
    )


def too_many_errors(summary: Summary, allowed: float) -> str | None:
    """A sentence when more than the share ``allowed`` (0 to 1) of the requests failed, else None."""
    if summary.failed <= allowed * summary.requests:
        return None
    kinds = ", ".join(f"{count} x {kind}" for kind, count in summary.errors.items())
    return f"{summary.failed} of {summary.requests} requests failed ({kinds}); {allowed:.1%} are allowed."


def worst(codes: list[int]) -> int:
    """The exit code of several runs; 0 of none."""
    return min(codes, key=WORST_FIRST.index, default=DONE)
