"""How many requests waited and how many were being answered, over time. Pure.

Told from the client's records alone, so it holds for any server: a request waits from the moment it was
scheduled until its first token, and is being answered until its response ends, also while a server has
preempted it. Requests in flight when a run was cut off have no record and are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fgbench.metrics.record import RequestRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARTS = 120
"""A picture has no room for more."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Mean numbers of requests in equal parts of a run. Means, for moments would miss what is brief."""

    times: list[float]
    """The middle of each part, in seconds since the first request was scheduled."""
    waiting: list[float]
    """For their first token."""
    answering: list[float]


def queue_lengths(records: Sequence[RequestRecord], parts: int = PARTS) -> Timeline | None:
    """None where no request ended after it was scheduled."""
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
    came, begun, gone = (_seconds_since(events, edges) for events in (scheduled, first, finished))
    part = (end - start) / parts
    return Timeline(
        times=(edges[:-1] + part / 2 - start).tolist(),
        waiting=(np.diff(came - begun) / part).clip(0.0).tolist(),
        answering=(np.diff(begun - gone) / part).clip(0.0).tolist(),
    )


def _seconds_since(events: NDArray[Any], moments: NDArray[Any]) -> NDArray[Any]:
    """At each moment, the seconds passed since each event that had come by then, in sum."""
    import numpy as np

    ordered = np.sort(events)
    behind = np.searchsorted(ordered, moments, "right")
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    return np.asarray(behind * moments - sums[behind])
