"""The latencies of one hand-made request."""

from __future__ import annotations

import pytest

from fgbench.metrics.latency import itl, jct, lag, normalized_latency, tpot, ttft
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.statistics import Distribution

RECORD = RequestRecord(
    index=0,
    scheduled=10.0,
    sent=10.5,
    prompt_tokens=7,
    asked_tokens=4,
    output_tokens=4,
    first_token=11.0,
    last_token=14.0,
    token_times=(11.0, 11.5, 13.5, 14.0),
    finished=14.1,
)
SILENT = RequestRecord(
    index=1, scheduled=0.0, sent=0.0, prompt_tokens=7, asked_tokens=4, error="timeout: 5 s"
)


def test_latencies_count_from_the_scheduled_time_by_default() -> None:
    assert ttft(RECORD) == 1.0
    assert ttft(RECORD, "sent") == 0.5
    assert jct(RECORD) == 4.0
    assert jct(RECORD, "sent") == 3.5
    assert normalized_latency(RECORD) == 1.0
    assert normalized_latency(RECORD, "sent") == 3.5 / 4
    assert lag(RECORD) == 0.5


def test_tpot_leaves_out_the_first_token() -> None:
    assert tpot(RECORD) == 1.0 == (14.0 - 11.0) / 3
    one_token = RequestRecord(
        index=0,
        scheduled=0,
        sent=0,
        prompt_tokens=1,
        asked_tokens=1,
        output_tokens=1,
        first_token=2.0,
        last_token=2.0,
        token_times=(2.0,),
    )
    assert tpot(one_token) is None
    assert normalized_latency(one_token) == 2.0
    assert itl(one_token) == []


def test_itl_is_the_list_of_all_gaps() -> None:
    assert itl(RECORD) == [0.5, 2.0, 0.5]


def test_a_request_without_tokens_has_no_latencies() -> None:
    assert ttft(SILENT) is jct(SILENT) is normalized_latency(SILENT) is tpot(SILENT) is None


def test_percentiles_interpolate_between_order_statistics() -> None:
    values = Distribution.of([1.0, 2.0, 3.0, 4.0, None])
    assert values is not None
    assert (values.count, values.mean, values.min, values.max) == (4, 2.5, 1.0, 4.0)
    assert values.p50 == 2.5
    assert values.p90 == pytest.approx(3.7)  # position 0.9 * 3 = 2.7
    assert values.p99 == pytest.approx(3.97)
    assert Distribution.of([None]) is None
