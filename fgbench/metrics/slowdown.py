"""How much longer a request took than it would have alone, and how evenly that is spread. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fgbench.metrics.latency import jct
from fgbench.metrics.record import RequestRecord

if TYPE_CHECKING:
    from fgengine.cost import CostModel


def slowdown(record: RequestRecord, cost: CostModel) -> float | None:
    """JCT over the time the cost model gives the request on an idle machine; None without an answer."""
    completion = jct(record)
    if not record.ok or completion is None or min(record.output_tokens, record.prompt_tokens) < 1:
        return None
    return completion / cost.alone_seconds(record.prompt_tokens, record.output_tokens)


def slowdowns(records: Iterable[RequestRecord], cost: CostModel) -> list[float]:
    """Of the requests answered in full."""
    return [value for record in records if (value := slowdown(record, cost)) is not None]


def jain_index(values: Sequence[float]) -> float | None:
    """Jain's fairness index, (sum x)^2 / (n sum x^2): 1 where all are equal, 1 / n where one has all.

    None of no values, or of zeros alone.
    """
    squares = math.fsum(value * value for value in values)
    return math.fsum(values) ** 2 / (len(values) * squares) if squares > 0.0 else None
