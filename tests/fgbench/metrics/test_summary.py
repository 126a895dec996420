from __future__ import annotations

import json
import math

import pytest

from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import Summary, summarize
from fgbench.metrics.trimming import Trim


def answered(index: int, scheduled: float, first: float, last: float, tokens: int = 5) -> RequestRecord:
    times = tuple(first + (last - first) * k / (tokens - 1) for k in range(tokens))
    return RequestRecord(
        index=index,
        scheduled=scheduled,
        sent=scheduled + 0.1,
        prompt_tokens=10,
        asked_tokens=tokens,
        output_tokens=tokens,
        first_token=first,
        last_token=last,
        token_times=times,
        finished=last,
        server={"queued": 0.5, "preemptions": 2.0},
    )


def failed(index: int, scheduled: float, error: str) -> RequestRecord:
    return RequestRecord(
        index=index,
        scheduled=scheduled,
        sent=scheduled,
        prompt_tokens=10,
        asked_tokens=5,
        output_tokens=3,
        first_token=scheduled + 0.01,
        last_token=scheduled + 0.02,
        finished=scheduled + 0.02,
        error=error,
    )


RUN = [
    answered(0, 1.0, 2.0, 4.0),
    answered(1, 2.0, 3.0, 6.0),
    failed(2, 3.0, "http 500: the engine stopped"),
    failed(3, 5.0, "timeout: no answer within 5 s"),
]


def test_figures_of_a_small_run() -> None:
    summary = summarize(RUN, offered_rate=0.5)
    assert (summary.requests, summary.ok, summary.failed) == (4, 2, 2)
    assert summary.errors == {"http 500": 1, "timeout": 1}
    assert summary.duration_s == 5.0
    assert summary.request_throughput == pytest.approx(2 / 5)
    assert summary.output_token_throughput == pytest.approx(10 / 5)
    assert summary.total_token_throughput == pytest.approx(30 / 5)
    assert summary.achieved_rate == pytest.approx(3 / (5.0 - 1.1))
    assert summary.figure("jct") == pytest.approx(3.5)
    assert summary.figure("jct_from_sent", "mean") == pytest.approx(3.4)
    assert summary.figure("lag", "max") == pytest.approx(0.1)
    assert summary.server_requests == 2
    assert summary.server_totals == {"queued": 1.0, "preemptions": 4.0}
    assert not summary.overloaded


def test_failed_requests_count_in_no_throughput_or_latency() -> None:
    summary = summarize(RUN[2:], offered_rate=0.5)
    assert summary.output_tokens == 0
    assert summary.request_throughput == 0.0
    assert summary.figure("jct") is None


def test_without_records_all_figures_are_zero_or_none() -> None:
    summary = summarize([], offered_rate=None)
    assert (summary.requests, summary.duration_s, summary.achieved_rate) == (0, 0.0, None)


def test_all_at_once_counts_as_overload() -> None:
    assert summarize(RUN, offered_rate=math.inf).overloaded


@pytest.mark.parametrize("rate", [0.5, math.inf, None])
def test_json_round_trip_is_exact(rate: float | None) -> None:
    summary = summarize(RUN, offered_rate=rate)
    text = json.dumps(summary.to_dict(), allow_nan=False)
    assert Summary.from_dict(json.loads(text)) == summary


def test_unknown_keys_are_ignored_and_missing_ones_are_an_error() -> None:
    data = summarize(RUN, offered_rate=0.5).to_dict()
    assert Summary.from_dict({**data, "new_figure": 1}).figure("jct") is not None
    del data["ok"]
    with pytest.raises(ValueError, match=r"not a summary.*ok"):
        Summary.from_dict(data)


def rejected(index: int, scheduled: float, reason: str = "http 429: the queue is full") -> RequestRecord:
    return RequestRecord(index, scheduled, scheduled, 10, 5, finished=scheduled + 0.01, rejected=reason)


def test_rejected_requests_are_not_failures_and_have_no_latency() -> None:
    some = [rejected(4, 3.5), rejected(5, 3.6), rejected(6, 3.7, "queue timeout: it waited 5 s")]
    summary, without = (summarize(records, offered_rate=0.5) for records in (RUN + some, RUN))
    assert (summary.requests, summary.ok, summary.failed, summary.rejected) == (7, 2, 2, 3)
    assert summary.rejections == {"http 429": 2, "queue timeout": 1}
    assert summary.errors == without.errors
    assert summary.rejected_share == pytest.approx(3 / 7)
    assert summary.output_token_throughput == without.output_token_throughput
    for name in ("ttft", "jct", "normalized_latency", "tpot", "itl"):
        assert summary.distributions.get(name) == without.distributions.get(name)
    assert summary.overloaded
    assert not without.overloaded
    assert Summary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary


def test_a_summary_of_an_older_version_has_no_rejections() -> None:
    old = summarize(RUN, offered_rate=0.5).to_dict()
    del old["rejected"], old["rejections"]
    assert Summary.from_dict(old).rejected_share == 0.0
    assert summarize([], offered_rate=1.0).rejected_share == 0.0


def test_throughput_of_a_trimmed_window_counts_what_ended_in_it() -> None:
    """A server that answers every 2 s, and gets a request every second."""
    records = [
        RequestRecord(i, float(i), float(i), 8, 1, 1, 2.0 * i, 2.0 * i, (2.0 * i,), finished=2.0 * i)
        for i in range(100)
    ]
    for trim in (Trim.parse(None, None), Trim.parse("20s", "0s"), Trim.parse("60s", "0s")):
        found = summarize(records, offered_rate=1.0, trim=trim).window_throughput
        assert found == pytest.approx(0.5, rel=0.05)
