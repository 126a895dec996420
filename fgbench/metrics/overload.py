"""Decides from the request records whether the load was above capacity. Pure.

Above capacity, a backlog grows as long as requests arrive. The mean latency then shows how many requests were
sent, not how good the server is. Such runs must be marked.

**Method.** The *shortfall* compares two numbers of output tokens at the moment of the last arrival:

- delivered: the tokens that the server had delivered by then;
- due: the tokens that it would have delivered by then if no request had waited.

For "due", each request streams from its scheduled time, plus a typical time to first token without a queue
(the 10th percentile of TTFT). It streams at the typical pace of the run: the median over requests of the
median gap between pieces. Preemptions cause few, long gaps, so they do not change this median. Large
simulations do not store the time of each token; there the pace is the 10th percentile of TPOT.

If a server keeps up, its shortfall is only what its bounded queue holds. As a share, that goes to zero in a
long run. If the offered load is rho times the capacity, the shortfall is 1 - 1/rho. A shortfall above
``THRESHOLD`` is overload. Tokens are counted, not requests, because the remaining work does not depend on the
order of service: SRPT has few waiting requests even under heavy overload.

A server with a bounded queue rejects what it cannot serve, so its backlog remains small. Therefore the tokens
that a rejected request asked for count as due and never as delivered. A run is also overloaded if more than
``THRESHOLD`` of its requests were rejected, since too few answers may remain to judge it.

**Limits.** Load within about 10% of capacity cannot be distinguished from capacity. A run much shorter than
the time to fill the batch cannot show overload and is not marked. Requests that failed, or did not finish
because the run was interrupted, are ignored. Answers that were not streamed cannot be judged.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from fgbench.metrics.latency import tpot, ttft
from fgbench.metrics.record import RequestRecord

THRESHOLD = 0.1
"""Largest shortfall, and largest share of rejected requests, of a run that is not overloaded."""
MIN_REQUESTS = 20
"""Streamed answers needed to compute a shortfall."""


def shortfall(records: Sequence[RequestRecord]) -> float | None:
    """Return the share of the tokens due by the last arrival that were not delivered by then, 0 to 1.

    Returns None with fewer than ``MIN_REQUESTS`` streamed answers, or if all requests were scheduled at once.
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
    """Whether a shortfall means overload; an unknown one (None) does not."""
    return share is not None and share > THRESHOLD


def rejects_many(records: Sequence[RequestRecord]) -> bool:
    """Whether the server rejected so many requests that the run counts as overloaded."""
    return sum(record.rejected is not None for record in records) > THRESHOLD * len(records)


def _due_of_rejected(record: RequestRecord, end: float, gap: float) -> float:
    """Return the tokens that would have been delivered by ``end`` if the request had not been rejected.

    Assumes one token per piece.
    """
    return _ideal_pieces(end - record.scheduled, gap, record.asked_tokens)


def _ideal_pieces(seconds: float, gap: float, pieces: int) -> float:
    """Return how many of ``pieces`` have arrived ``seconds`` after the first, one every ``gap`` seconds."""
    if seconds < 0.0:
        return 0.0
    return float(pieces) if seconds >= gap * (pieces - 1) else 1.0 + seconds / gap


def _pieces(record: RequestRecord) -> int:
    """Return the number of streamed pieces; one per token if the times of the pieces were not stored."""
    return len(record.token_times) or (record.output_tokens if record.first_token is not None else 0)


def _delivered(record: RequestRecord, by: float) -> float:
    """Return the number of pieces that had arrived by the time ``by``.

    If the times of the pieces were not stored, they are assumed evenly spaced between the first and the last.
    """
    if record.token_times:
        return bisect_right(record.token_times, by)
    first, last, pieces = record.first_token, record.last_token, _pieces(record)
    if first is None or last is None or by < first:
        return 0.0
    return float(pieces) if by >= last else 1.0 + (pieces - 1) * (by - first) / (last - first)


def _typical_gap(times: Sequence[float]) -> float:
    return median(later - earlier for earlier, later in pairwise(times))
