"""Where a request's time went, by the server's own account. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from fgbench.metrics.record import STATES
from fgbench.metrics.summary import Summary


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Means over the requests that came with an account."""

    seconds: dict[str, float]
    """In each of ``STATES`` that the server accounts for."""
    preemptions: float | None
    bytes_moved: float | None
    """Of KV, between device and host."""

    @property
    def swapped_share(self) -> float | None:
        """Share of the requests' time at the server in which their turn had come, but their KV had not."""
        whole = sum(self.seconds.values())
        return self.seconds["swapped"] / whole if "swapped" in self.seconds and whole > 0.0 else None

    @classmethod
    def of(cls, summary: Summary) -> Breakdown | None:
        """None where no request came with an account: the server is of another make."""
        if not summary.server_requests:
            return None
        means = {name: total / summary.server_requests for name, total in summary.server_totals.items()}
        return cls(
            seconds={state: means[state] for state in STATES if state in means},
            preemptions=means.get("preemptions"),
            bytes_moved=means.get("bytes_moved"),
        )
