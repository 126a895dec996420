"""One definition of each latency of a request. Pure; seconds throughout.

``scheduled`` is when the arrival process says the request leaves, ``sent`` when it left. Counting from
``scheduled`` charges the client's lag to the measurement instead of hiding it (coordinated omission), so
that is the default everywhere; the figures from ``sent`` stand beside it to show what the lag adds.
Each function gives None (or an empty list) where the record cannot say.
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
    """How late the client sent the request."""
    return record.sent - record.scheduled


def ttft(record: RequestRecord, since: Since = "scheduled") -> float | None:
    """Time to first token."""
    return None if record.first_token is None else record.first_token - _start(record, since)


def jct(record: RequestRecord, since: Since = "scheduled") -> float | None:
    """Job completion time: to the last token. The paper calls it end-to-end latency."""
    return None if record.last_token is None else record.last_token - _start(record, since)


def normalized_latency(record: RequestRecord, since: Since = "scheduled") -> float | None:
    """JCT per output token, the paper's y axis (its artifact's plots call it "tpot", which it is not)."""
    completion = jct(record, since)
    return None if completion is None or record.output_tokens < 1 else completion / record.output_tokens


def tpot(record: RequestRecord) -> float | None:
    """Time per output token after the first: (last - first) / (n - 1), for n >= 2."""
    if record.first_token is None or record.last_token is None or record.output_tokens < 2:
        return None
    return (record.last_token - record.first_token) / (record.output_tokens - 1)


def itl(record: RequestRecord) -> list[float]:
    """Inter-token latencies: every gap between two streamed pieces (a piece is one token in our server)."""
    return [later - earlier for earlier, later in pairwise(record.token_times)]


def slowdown(record: RequestRecord, cost: CostModel) -> float | None:
    """JCT over the time the cost model gives the request on an idle machine; None without an answer."""
    completion = jct(record)
    if not record.ok or completion is None or min(record.output_tokens, record.prompt_tokens) < 1:
        return None
    return completion / cost.alone_seconds(record.prompt_tokens, record.output_tokens)


def slowdowns(records: Iterable[RequestRecord], cost: CostModel) -> list[float]:
    """Of the requests answered in full."""
    return [value for record in records if (value := slowdown(record, cost)) is not None]


def _start(record: RequestRecord, since: Since) -> float:
    return record.scheduled if since == "scheduled" else record.sent
