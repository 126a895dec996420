from __future__ import annotations

import pytest

from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import Summary, summarize
from fgbench.metrics.trimming import Amount, Trim

# Ten requests, one per second, each answered after two seconds; request 4 fails.
RUN = [
    RequestRecord(
        i, float(i), i + 0.01, 4, 2, 2, i + 1.0, i + 2.0, (i + 1.0, i + 2.0), i + 2.0,
        error="http 500: no" if i == 4 else None,
    )
    for i in range(10)
]  # fmt: skip


def trimmed(start: str | None, end: str | None) -> Summary:
    return summarize(RUN, offered_rate=1.0, trim=Trim.parse(start, end))


def test_without_trimming_everything_counts() -> None:
    summary = trimmed(None, None)
    assert (summary.requests, summary.trimmed, summary.window) == (10, 0, None)
    assert summary == summarize(RUN, offered_rate=1.0)


@pytest.mark.parametrize(
    ("start", "end", "left"),
    [
        ("2s", None, range(2, 10)),
        (None, "3", range(7)),
        ("10%", "10%", range(1, 9)),  # of 9 seconds between the first and the last: 0.9
        ("2 s", "20%", range(2, 8)),
        ("0", "0%", range(10)),
    ],
)
def test_requests_outside_the_window_are_left_out(start: str | None, end: str | None, left: range) -> None:
    summary = trimmed(start, end)
    assert summary.requests == len(left)
    assert summary.trimmed == 10 - len(left)
    assert summary.failed == (4 in left)
    assert summary.distributions["lag"].count == len(left)


def test_throughput_covers_what_ended_in_the_window() -> None:
    summary = trimmed("2s", "2s")  # window 2 to 7 s: requests 0 to 5 ended in it, except 4, which failed
    assert summary.window == (2.0, 7.0)
    assert summary.duration_s == 5.0
    assert summary.request_throughput == pytest.approx(5 / 5)
    assert summary.output_token_throughput == pytest.approx(10 / 5)


def test_trimming_all_requests_is_no_error() -> None:
    summary = trimmed("60s", None)
    assert (summary.requests, summary.trimmed, summary.figure("jct")) == (0, 10, None)
    assert summary.request_throughput == 0.0


def test_overload_is_judged_on_the_complete_run() -> None:
    assert trimmed("20%", "20%").shortfall == trimmed(None, None).shortfall
    growing = [  # a request arrives every 100 ms, one is served every 400 ms
        RequestRecord(i, i * 0.1, i * 0.1, 4, 9, 9, i * 0.4 + 0.1, i * 0.4 + 0.9, (), i * 0.4 + 0.9)
        for i in range(100)
    ]
    assert summarize(growing, offered_rate=10.0, trim=Trim.parse("40%", "50%")).overloaded


def test_a_summary_with_a_window_reads_back() -> None:
    summary = trimmed("1s", "1s")
    assert Summary.from_dict(summary.to_dict()) == summary


@pytest.mark.parametrize("text", ["5%", "30s", "0.5s", "0s"])
def test_str_of_an_amount_can_be_parsed(text: str) -> None:
    assert str(Amount.parse(text, "--trim")) == text


@pytest.mark.parametrize("text", ["x", "-1", "5m", "100%", "nan", "1e3", "%", ""])
def test_an_error_names_the_option(text: str) -> None:
    with pytest.raises(ValueError, match="--trim"):
        Amount.parse(text, "--trim")


def test_shares_of_100_percent_are_an_error() -> None:
    with pytest.raises(ValueError, match="leave nothing"):
        Trim.parse("60%", "40%")
