"""Latencies by output length."""

from __future__ import annotations

import pytest

from fgbench.metrics.lengths import STARTS, by_length
from fgbench.metrics.record import RequestRecord


def record(tokens: int, latency: float, error: str | None = None) -> RequestRecord:
    return RequestRecord(
        0, 1.0, 1.0, 8, tokens, tokens, 1.1, 1.0 + latency, finished=1.0 + latency, error=error
    )


def test_requests_are_divided_by_the_length_of_their_answers() -> None:
    records = [
        record(1, 1.0),
        record(15, 3.0),
        record(16, 4.0),
        record(5000, 10.0),
        record(20, 9.0, "http 500"),
    ]
    short, middle, long = by_length(records)
    assert [(one.name, one.requests) for one in (short, middle, long)] == [
        ("1–15", 2),
        ("16–31", 1),
        ("4096+", 1),
    ]
    assert short.jct == pytest.approx(2.0)
    assert short.normalized_latency == pytest.approx((1.0 + 3.0 / 15) / 2)
    assert long.normalized_latency == pytest.approx(10.0 / 5000)
    assert by_length([]) == []


def test_every_length_has_a_bucket() -> None:
    for start in STARTS:
        (bucket,) = by_length([record(start, 1.0)])
        assert bucket.start == start
