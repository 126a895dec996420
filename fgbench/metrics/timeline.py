"""The number of waiting requests, and of requests being answered, over time. Pure.

It is computed from the client's records, so it works for any server. A request waits from its scheduled time
until its first token. Then it is being answered until its response ends, even while the server has preempted
it. Requests in flight when a run was interrupted have no record, so they are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fgbench.metrics.record import RequestRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARTS = 120
"""Number of parts of the timeline; a picture cannot show more."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Mean numbers of requests in equal parts of a run. Samples at single moments would miss short peaks."""

    times: list[float]
    """The middle of each part, in seconds since the first request was scheduled."""
    waiting: list[float]
    """Requests that wait for their first token."""
    answering: list[float]
    """Requests that have their first token, but not their last."""


def queue_lengths(records: Sequence[RequestRecord], parts: int = PARTS) -> Timeline | None:
    """Return the timeline, or None if no request ended after it was scheduled."""
    import numpy as np

    ended = [record for record in records if record.finished is not None]
    if not ended:
        return None
    scheduled = np.array([record.scheduled for record in ended])
    finished = np.array([record.finished for record in ended])
    first = np.array([r.finished if r.first_token is None else r.first_token for r in ended])
    start, end = float(scheduled.min()), float(finished.max())
    if not end > start:
        return None
    edges = np.linspace(start, end, parts + 1)
    arrived, answered, ended_seconds = (
        _seconds_since(events, edges) for events in (scheduled, first, finished)
    )
    part = (end - start) / parts
    return Timeline(
        times=(edges[:-1] + part / 2 - start).tolist(),
        waiting=(np.diff(arrived - answered) / part).clip(0.0).tolist(),
        answering=(np.diff(answered - ended_seconds) / part).clip(0.0).tolist(),
    )


def _seconds_since(events: NDArray[Any], moments: NDArray[Any]) -> NDArray[Any]:
    """For each moment, return the sum over all earlier events of the seconds since the event."""
    import numpy as np

    ordered = np.sort(events)
    earlier = np.searchsorted(ordered, moments, "right")
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    return np.asarray(earlier * moments - sums[earlier])
