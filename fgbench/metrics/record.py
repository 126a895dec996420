"""The record of one request as the client measured it. All metrics are computed from these records."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

STATES = ("queued", "swapped", "prefill", "decode")
"""States of a request in FastGen. ``RequestRecord.server`` holds the seconds in each; they sum up to the
request's time in the server."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as the client measured it.

    Times are seconds on the client's monotonic clock, counted from the start of the load. ``token_times``
    holds the arrival of each streamed piece that has text or tokens. A piece is not always one token, so the
    number of tokens is ``output_tokens``, which the server reports as its usage.
    """

    index: int
    """Position in the workload."""
    scheduled: float
    """When the arrival process says that the request is due."""
    sent: float
    """When the client sent it; ``sent - scheduled`` is the client's lag."""
    prompt_tokens: int
    asked_tokens: int
    """Output tokens requested: max_tokens. With ignore_eos every answer has as many, else at most as many."""
    output_tokens: int = 0
    first_token: float | None = None
    last_token: float | None = None
    token_times: tuple[float, ...] = ()
    finished: float | None = None
    """When the response ended, with success or not."""
    error: str | None = None
    """Class and description of a failure: ``timeout: ...``, ``http 400: ...``. None if the request was
    answered in full or rejected."""
    server: dict[str, float] | None = None
    """What FastGen reports about the request: seconds in each of ``STATES``, ``preemptions`` and
    ``bytes_moved``. None for other servers."""
    user: str = ""
    """The user that the request was sent for; empty if the workload names none."""
    rejected: str | None = None
    """Class and description if the server rejected the request because it was too busy: ``http 429: ...`` or
    ``queue timeout: ...``. Such a request has no ``error`` and no latency."""

    @property
    def ok(self) -> bool:
        """Whether it was answered in full."""
        return self.error is None and self.rejected is None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)
