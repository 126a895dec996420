"""How a run went: the exit code it deserves, and why. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fgbench.benchmark import client_was_the_limit, too_many_errors
from fgbench.metrics.summary import Summary

DONE, FAILED, TOO_MANY_ERRORS, CLIENT_LIMIT, INTERRUPTED = 0, 1, 3, 4, 130
WORST_FIRST = (INTERRUPTED, FAILED, TOO_MANY_ERRORS, CLIENT_LIMIT, DONE)


@dataclass(frozen=True, slots=True)
class Verdict:
    code: int
    sentence: str = ""
    """Empty where all is well."""

    @property
    def measured(self) -> bool:
        """Whether the figures are those of the whole load: the client may have been the limit."""
        return self.code in (DONE, CLIENT_LIMIT)


def verdict(info: dict[str, Any], max_error_rate: float) -> Verdict:
    """Of a run by its run.json. ``max_error_rate``: share of failed requests above which it is no good."""
    status = info.get("status")
    if status == "interrupted":
        ended, planned = (info.get("summary") or {}).get("requests", 0), info["workload"]["num_prompts"]
        return Verdict(INTERRUPTED, f"Interrupted: {ended} of {planned} requests had ended and are kept.")
    if status != "complete":
        return Verdict(FAILED, str(info.get("error") or "the run was killed before it ended"))
    summary = Summary.from_dict(info["summary"])
    if errors := too_many_errors(summary, max_error_rate):
        return Verdict(TOO_MANY_ERRORS, errors)
    if limit := client_was_the_limit(summary):
        return Verdict(CLIENT_LIMIT, limit)
    return Verdict(DONE)


def worst(codes: list[int]) -> int:
    """The exit code of several runs; 0 of none."""
    return min(codes, key=WORST_FIRST.index, default=DONE)
