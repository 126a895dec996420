"""What the client saw of one request: the only thing metrics are computed from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

STATES = ("queued", "swapped", "prefill", "decode")
"""Of a request at our server, in ``RequestRecord.server``: the seconds in them sum up to its time there."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """Times are seconds on the client's monotonic clock, counted from the start of the load.

    ``token_times`` holds the arrival of each streamed piece with text or tokens; pieces are not tokens,
    so counts come from ``output_tokens``, the server's own usage.
    """

    index: int
    """Position in the workload."""
    scheduled: float
    """When the arrival process says the request leaves."""
    sent: float
    """When it left; ``sent - scheduled`` is the client's own lag."""
    prompt_tokens: int
    asked_tokens: int
    """Output tokens asked for (max_tokens with ignore_eos)."""
    output_tokens: int = 0
    first_token: float | None = None
    last_token: float | None = None
    token_times: tuple[float, ...] = ()
    finished: float | None = None
    """When the response ended, well or not."""
    error: str | None = None
    """None: answered in full or rejected. Else a class and a sentence: ``timeout: ...``, ``http 400: ...``"""
    server: dict[str, float] | None = None
    """fgengine's own account of the request where it gave one: seconds queued, swapped, prefill,
    decode; preemptions; bytes_moved."""
    user: str = ""
    """On whose behalf it was sent; empty: none was said."""
    rejected: str | None = None
    """None, unless the server had too much to do and said so: then a class and a sentence, ``http 429: ...``
    or ``queue timeout: ...``. Such a request has no ``error``: nothing went wrong, nothing was measured."""

    @property
    def ok(self) -> bool:
        """Whether it was answered in full."""
        return self.error is None and self.rejected is None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
