"""How many requests waited and how many were being answered, over time. Pure.

Told from the client's records alone, so it holds for any server: a request waits from the moment it was
scheduled until its first token, and is being answered until its response ends, also while a server has
preempted it. Requests in flight when a run was cut off have no record and are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fgbench.client.record import RequestRecord

MOMENTS = 400
"""Evenly spread over the run; a picture has room for no more."""


@dataclass(frozen=True, slots=True)
class Timeline:
    times: list[float]
    """Seconds since the first request was scheduled."""
    waiting: list[int]
    """For their first token."""
    answering: list[int]


def queue_lengths(records: Sequence[RequestRecord], moments: int = MOMENTS) -> Timeline | None:
    """None where no request ended after it was scheduled."""
    import numpy as np

    ended = [record for record in records if record.finished is not None]
    if not ended:
        return None
    scheduled = np.sort([record.scheduled for record in ended])
    first = np.sort(
        [record.finished if record.first_token is None else record.first_token for record in ended]
    )
    finished = np.sort([record.finished for record in ended])
    if not finished[-1] > scheduled[0]:
        return None
    times = np.linspace(scheduled[0], finished[-1], moments)
    came, begun, gone = (np.searchsorted(events, times, "right") for events in (scheduled, first, finished))
    return Timeline((times - scheduled[0]).tolist(), (came - begun).tolist(), (begun - gone).tolist())
