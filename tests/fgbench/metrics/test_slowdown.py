from __future__ import annotations

import pytest

from fgbench.metrics.latency import slowdown, slowdowns
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.statistics import jain_index
from fgengine.cost import CostModel

COST = CostModel(step=0.1, prefill_token=0.01)
"""Ten prompt tokens: 0.2 s to the first token; 0.1 s for each further one."""


def answered(jct: float, tokens: int = 4, error: str | None = None) -> RequestRecord:
    return RequestRecord(0, 1.0, 1.0, 10, tokens, tokens, 1.0 + jct / 2, 1.0 + jct, (), 1.0 + jct, error)


def test_slowdown_is_jct_over_the_time_alone() -> None:
    assert COST.alone_seconds(10, 4) == pytest.approx(0.5)
    assert slowdown(answered(1.5), COST) == pytest.approx(3.0)


def test_requests_without_an_answer_have_none() -> None:
    assert slowdown(answered(1.5, error="timeout: 1 s"), COST) is None
    assert slowdown(answered(1.5, tokens=0), COST) is None
    assert slowdown(RequestRecord(0, 0.0, 0.0, 10, 4), COST) is None
    assert slowdowns([answered(0.5), answered(1.0), answered(1.0, tokens=0)], COST) == [
        pytest.approx(1.0),
        pytest.approx(2.0),
    ]


def test_jains_index_by_hand() -> None:
    assert jain_index([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert jain_index([5.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain_index([1.0, 3.0]) == pytest.approx(16 / 20)
    assert jain_index([]) is jain_index([0.0, 0.0]) is None
