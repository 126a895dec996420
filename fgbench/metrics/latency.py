"""The latencies of one request, each defined once. Pure; all times are seconds.

``scheduled`` is when the arrival process says that the request is due. ``sent`` is when the client sent it.
Latencies count from ``scheduled`` by default. So the client's own lag counts as latency and is not hidden
(coordinated omission). The same figures counted from ``sent`` show how much the lag adds.

Each function returns None (or an empty list) if the record lacks the times it needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from fgbench.metrics.record import RequestRecord

if TYPE_CHECKING:
    from fgengine.cost import CostModel

Since = Literal["scheduled", "sent"]


def lag(record: RequestRecord) -> float:
    """Return how late the client sent the request."""
    return record.sent - record.scheduled


def ttft(record: RequestRecord, since: Since = "scheduled") -> float | None:
    """Return the time to first token."""
    return None if record.first_token is None else record.first_token - _start(record, since)


def jct(record: RequestRecord, since: Since = "scheduled") -> float | None:
    """Return the job completion time: until the last token. The paper calls it end-to-end latency."""
    return None if record.last_token is None else record.last_token - _start(record, since)


def normalized_latency(record: RequestRecord, since: Since = "scheduled") -> float | None:
    """Return the JCT per output token: the y axis of the paper's figures.

    The plots of the paper's artifact call it "tpot", but it is not the time per output token.
    """
    completion = jct(record, since)
    return None if completion is None or record.output_tokens < 1 else completion / record.output_tokens


def tpot(record: RequestRecord) -> float | None:
    """Return the time per output token after the first: (last - first) / (n - 1), for n >= 2.

    If the tokens arrive in fewer moments than there are tokens, the first moment has more than one token.
    Then only the tokens after it are counted, with as many tokens in each piece. Returns None if all tokens
    arrived in one moment.
    """
    first, last = record.first_token, record.last_token
    if first is None or last is None or record.output_tokens < 2 or last <= first:
        return None
    pieces = len(record.token_times)
    at_first = record.token_times.count(record.token_times[0]) if pieces else 0
    in_first = 1.0 if pieces == 0 else max(1.0, record.output_tokens * at_first / pieces)
    return (last - first) / (record.output_tokens - in_first)


def moments(record: RequestRecord) -> int:
    """Return in how many moments the tokens arrived: several pieces can arrive in one read.

    Returns 0 if the times of the pieces were not stored.
    """
    return len(set(record.token_times))


def itl(record: RequestRecord) -> list[float]:
    """Return the inter-token latencies: all gaps between two streamed pieces.

    FastGen streams one token per piece.
    """
    return [later - earlier for earlier, later in pairwise(record.token_times)]


def slowdown(record: RequestRecord, cost: CostModel) -> float | None:
    """Return the JCT over the time that the request needs on an idle machine, estimated by the cost model.

    Returns None if the request was not answered in full.
    """
    completion = jct(record)
    if not record.ok or completion is None or min(record.output_tokens, record.prompt_tokens) < 1:
        return None
    return completion / cost.alone_seconds(record.prompt_tokens, record.output_tokens)


def slowdowns(records: Iterable[RequestRecord], cost: CostModel) -> list[float]:
    """Return the slowdowns of the requests that were answered in full."""
    return [value for record in records if (value := slowdown(record, cost)) is not None]


def _start(record: RequestRecord, since: Since) -> float:
    return record.scheduled if since == "scheduled" else record.sent
