"""Was the load above capacity? Told from the records alone. Pure.

Above capacity a backlog grows for as long as requests arrive, so a mean latency says how many requests
were sent, not how good the server is. Such runs must be marked.

**Method.** The *shortfall* of a run compares two amounts of output tokens at the moment of the last
arrival: what the server had delivered, and what it would have delivered had no request waited, each
streaming from the moment it was scheduled (plus a typical unqueued first-token time: the 10th percentile
of TTFT) at the run's typical pace (the median over requests of the median gap between pieces, which
preemption, being rare gaps, does not move; in simulations too large to keep each token's time, the 10th
percentile of TPOT). A server that keeps up falls short only by what its bounded
queue holds, a share that vanishes as the run grows; one that is offered rho times its capacity falls short
by 1 - 1/rho. A shortfall above ``THRESHOLD`` is overload. Tokens are counted, not requests, because
work left over does not depend on the order of service: SRPT keeps few requests waiting even when it drowns.

A server with a bounded queue rejects what it cannot serve, and its backlog stays small. So the tokens that a
rejected request asked for are due, and never delivered. A run also counts as overloaded where more than
``THRESHOLD`` of its requests were rejected, since too few answers may be left to judge it by.

**Limits.** Load within about 10% of capacity is not told apart from capacity. A run much shorter than the
time it takes to fill the batch cannot show overload and is not marked. Requests that failed or were never
finished (an interrupted run) are not seen. Answers that were not streamed cannot be judged.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from fgbench.metrics.latency import tpot, ttft
from fgbench.metrics.record import RequestRecord

THRESHOLD = 0.1
MIN_REQUESTS = 20


def shortfall(records: Sequence[RequestRecord]) -> float | None:
    """Share of the tokens due by the last arrival that had not been delivered by then, 0 to 1.

    None where it cannot be told: fewer than ``MIN_REQUESTS`` streamed answers, or all scheduled at once.
    """
    import numpy as np

    streams = [record for record in records if record.ok and _pieces(record) > 1]
    if len(streams) < MIN_REQUESTS:
        return None
    first_token_time = float(np.percentile([ttft(record) or 0.0 for record in streams], 10))
    if any(record.token_times for record in streams):
        gap = median(_typical_gap(record.token_times) for record in streams if len(record.token_times) > 1)
    else:
        gap = float(np.percentile([tpot(record) or 0.0 for record in streams], 10))
    end = max(record.scheduled for record in records)
    rejected = (record for record in records if record.rejected is not None)
    due = sum(_due_of_rejected(record, end - first_token_time, gap) for record in rejected)
    delivered = 0.0
    for record in streams:
        pieces = _pieces(record)
        ideal = _ideal_pieces(end - record.scheduled - first_token_time, gap, pieces)
        due += record.output_tokens * ideal / pieces
        delivered += record.output_tokens * _delivered(record, end) / pieces
    return max(0.0, 1.0 - delivered / due) if due > 0.0 else None


def is_overloaded(share: float | None) -> bool:
    return share is not None and share > THRESHOLD


def rejects_many(records: Sequence[RequestRecord]) -> bool:
    """Whether the server rejected more of the requests than one that keeps up would."""
    return sum(record.rejected is not None for record in records) > THRESHOLD * len(records)


def _due_of_rejected(record: RequestRecord, end: float, gap: float) -> float:
    """Tokens, one a piece, that would have been delivered by ``end`` had the request not been rejected."""
    return _ideal_pieces(end - record.scheduled, gap, record.asked_tokens)


def _ideal_pieces(seconds: float, gap: float, pieces: int) -> float:
    """How many of ``pieces`` have come ``seconds`` after the first one, one every ``gap`` seconds."""
    if seconds < 0.0:
        return 0.0
    return float(pieces) if seconds >= gap * (pieces - 1) else 1.0 + seconds / gap


def _pieces(record: RequestRecord) -> int:
    """Where the times of single pieces were not kept, one a token."""
    return len(record.token_times) or (record.output_tokens if record.first_token is not None else 0)


def _delivered(record: RequestRecord, by: float) -> float:
    """Pieces that had come ``by`` then: as counted, or evenly between the first and the last."""
    if record.token_times:
        return bisect_right(record.token_times, by)
    first, last, pieces = record.first_token, record.last_token, _pieces(record)
    if first is None or last is None or by < first:
        return 0.0
    return float(pieces) if by >= last else 1.0 + (pieces - 1) * (by - first) / (last - first)


def _typical_gap(times: Sequence[float]) -> float:
    return median(later - earlier for earlier, later in pairwise(times))
