"""The load as it runs: what the live display shows. Pure but for the clock it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fgbench.client.record import RequestRecord
from fgbench.workload.spec import RequestSpec


@dataclass(slots=True)
class LoadState:
    planned: int
    last_arrival: float
    """Seconds after the start at which the last request is to leave."""
    elapsed: float = 0.0
    sent: int = 0
    ok: int = 0
    failed: int = 0
    last_error: str | None = None
    _latency: float = field(default=0.0, repr=False)
    _normalized: float = field(default=0.0, repr=False)

    @classmethod
    def of(cls, requests: Sequence[RequestSpec]) -> LoadState:
        return cls(len(requests), max((r.scheduled for r in requests), default=0.0))

    def take(self, record: RequestRecord) -> None:
        if not record.ok:
            self.failed += 1
            self.last_error = record.error
            return
        self.ok += 1
        if record.last_token is not None:
            latency = record.last_token - record.scheduled
            self._latency += latency
            self._normalized += latency / record.output_tokens

    @property
    def ended(self) -> int:
        return self.ok + self.failed

    @property
    def in_flight(self) -> int:
        return self.sent - self.ended

    @property
    def achieved_rate(self) -> float:
        """Requests sent per second so far."""
        window = min(self.elapsed, self.last_arrival)
        return (self.sent - 1) / window if window > 0 and self.sent > 1 else 0.0

    @property
    def mean_latency(self) -> float | None:
        return self._latency / self.ok if self.ok else None

    @property
    def mean_normalized_latency(self) -> float | None:
        """Seconds per output token."""
        return self._normalized / self.ok if self.ok else None

    @property
    def remaining(self) -> float | None:
        """Seconds to go if requests go on ending as they have, and at least until the last one leaves."""
        if not self.ended:
            return None
        return max(self.last_arrival - self.elapsed, (self.planned - self.ended) * self.elapsed / self.ended)
