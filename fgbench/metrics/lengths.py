"""Latencies by output length. A feedback queue favours short answers, which a mean does not show. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fgbench.metrics.latency import jct, normalized_latency
from fgbench.metrics.record import RequestRecord

STARTS = (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Smallest output length of each bucket, in tokens."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The requests whose answers have a similar length."""

    start: int
    """Smallest length in tokens."""
    end: int | None
    """Smallest length of the next bucket; None: there is none."""
    requests: int
    jct: float
    """Mean seconds."""
    normalized_latency: float
    """Mean seconds per token."""

    @property
    def name(self) -> str:
        """Such as ``16–31`` or ``4096+``."""
        return f"{self.start}+" if self.end is None else f"{self.start}–{self.end - 1}"


def by_length(records: Iterable[RequestRecord]) -> list[Bucket]:
    """Return the buckets that have requests answered in full, in the order of their lengths.

    [bucket.jct for bucket in by_length(run.records)]
    """
    found: dict[int, list[RequestRecord]] = {}
    for record in records:
        if record.ok and record.output_tokens >= 1 and record.last_token is not None:
            place = max(i for i, start in enumerate(STARTS) if start <= record.output_tokens)
            found.setdefault(place, []).append(record)
    return [
        Bucket(
            STARTS[place],
            STARTS[place + 1] if place + 1 < len(STARTS) else None,
            len(some),
            sum(jct(record) or 0.0 for record in some) / len(some),
            sum(normalized_latency(record) or 0.0 for record in some) / len(some),
        )
        for place, some in sorted(found.items())
    ]
