"""SLOs on hand-made requests, and the parser of SLOs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fgbench.metrics.record import RequestRecord
from fgbench.metrics.slo import (
    BOUNDED,
    SLO,
    STATISTICS,
    Bound,
    attainment,
    goodput,
    parse_slo,
    rejects_too_many,
    window_goodput,
)
from fgbench.metrics.summary import summarize


def answered(*times: float, error: str | None = None) -> RequestRecord:
    """Return a request scheduled at 0, with a token at each of ``times``."""
    return RequestRecord(
        index=0,
        scheduled=0.0,
        sent=0.0,
        prompt_tokens=4,
        asked_tokens=len(times),
        output_tokens=len(times),
        first_token=times[0],
        last_token=times[-1],
        token_times=times,
        finished=times[-1],
        error=error,
    )


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("normalized_latency<0.3", [("normalized_latency", "mean", 0.3)]),
        ("p95 jct<20", [("jct", "p95", 20.0)]),
        ("jct.p95 <= 20s", [("jct", "p95", 20.0)]),
        ("P99(TTFT) < 500 ms", [("ttft", "p99", 0.5)]),
        ("mean_tpot<150ms/token", [("tpot", "mean", 0.15)]),
        ("ttft<1.55,normalized_latency<0.15", [("ttft", "mean", 1.55), ("normalized_latency", "mean", 0.15)]),
        ("median e2e latency<1e1", [("jct", "p50", 10.0)]),
        ("max itl<.2, jct/token<0.3", [("itl", "max", 0.2), ("normalized_latency", "mean", 0.3)]),
        ("inter-token-latency p99<100ms", [("itl", "p99", 0.1)]),
    ],
)
def test_many_spellings_are_accepted(text: str, bounds: list[tuple[str, str, float]]) -> None:
    slo = parse_slo(text)
    assert slo == SLO(tuple(Bound(*bound) for bound in bounds))
    assert parse_slo(str(slo)) == slo


def test_every_figure_can_be_bounded() -> None:
    assert {"ttft", "tpot", "itl", "jct", "normalized_latency"} <= set(BOUNDED)
    for metric in BOUNDED:
        for statistic in STATISTICS:
            slo = parse_slo(f"{statistic} {metric}<100")
            assert slo.bounds == (Bound(metric, statistic, 100.0),)
            assert slo.attained_by(answered(1.0, 2.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a bound on a latency: write one like 'normalized_latency<0.3'"),
        ("ttft", "'ttft' is not a bound on a latency"),
        ("ttft>1", "'ttft>1' is not a bound on a latency"),
        ("ttft<1,", "'' is not a bound"),
        ("ttft<<1", "is not a bound"),
        (
            "ttfs<1",
            "'ttfs' is no figure that an SLO can bound: give one of normalized_latency, jct",
        ),
        ("p42 ttft<1", "'p42 ttft' is no figure"),
        ("p95<1", "'p95' is no figure"),
        ("ttft<fast", "'ttft<fast' has no valid limit: give seconds above 0"),
        ("ttft<0", "has no valid limit: give seconds above 0"),
        ("ttft<-1", "has no valid limit: give seconds above 0"),
        ("ttft<nan", "has no valid limit: give seconds above 0"),
        ("ttft<1e999", "has no valid limit: give seconds above 0"),
        ("ttft<1min", "has no valid limit: give seconds above 0"),
        ("ttft<1,time to first token<2", "bounds one figure twice"),
        (
            ",".join(f"{s} {m}<1" for m in ("ttft", "jct") for s in STATISTICS[:5]),
            "has 10 bounds: give at most 8",
        ),
        ("ttft<1" + "0" * 300, "too long"),
    ],
)
def test_a_wrong_slo_is_an_error_of_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse_slo(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_request_attains_an_slo_by_its_own_figures() -> None:
    request = answered(1.0, 1.5, 3.5, 4.0)  # TTFT 1, TPOT 1, JCT 4, 1 s a token; gaps 0.5, 2, 0.5
    for held in ("ttft<1", "tpot<1", "jct<4", "normalized_latency<1", "itl<1", "p99 jct<4", "max itl<2"):
        assert parse_slo(held).attained_by(request), held
    for missed in (
        "ttft<0.9",
        "tpot<0.9",
        "jct<3.9",
        "normalized_latency<0.9",
        "max itl<1.9",
        "ttft<2,jct<3",
    ):
        assert not parse_slo(missed).attained_by(request), missed


def test_an_answer_of_one_token_meets_bounds_on_gaps() -> None:
    assert parse_slo("tpot<0.001,itl<0.001,ttft<1").attained_by(answered(1.0))
    not_streamed = RequestRecord(0, 0.0, 0.0, 4, 3, 3, finished=5.0)
    assert not parse_slo("tpot<9").attained_by(not_streamed)
    assert not parse_slo("ttft<9").attained_by(not_streamed)


def test_failed_requests_miss_the_slo() -> None:
    records = [answered(1.0, 2.0), answered(5.0, 6.0), answered(1.0, 2.0, error="timeout: 5 s")]
    slo = parse_slo("ttft<1.55,tpot<2")
    assert attainment(records, slo) == pytest.approx(1 / 3)
    assert goodput(records, slo, 4.0) == pytest.approx(1 / 4)
    assert attainment([], slo) is None
    assert goodput([], slo, 0.0) == 0.0


def test_goodput_while_requests_arrive_leaves_out_the_last_answers() -> None:
    records = [replace(answered(1.0, 2.0), scheduled=float(i), finished=i + 2.0) for i in range(10)]
    assert window_goodput(records, parse_slo("jct<9")) == pytest.approx(8 / 9)  # two end after 9 s
    assert window_goodput(records[:1], parse_slo("jct<9")) is None


def rejected() -> RequestRecord:
    return RequestRecord(0, 0.0, 0.0, 4, 2, finished=0.01, rejected="http 429: the queue is full")


def test_rejected_requests_miss_the_slo() -> None:
    slo = parse_slo("jct<3")
    records = [answered(1.0, 2.0)] * 3 + [rejected()]
    assert attainment(records, slo) == 0.75
    assert goodput(records, slo, duration=10.0) == pytest.approx(0.3)


@pytest.mark.parametrize(("count", "met"), [(0, True), (1, True), (3, False), (500, False)])
def test_a_run_that_rejects_too_many_requests_meets_no_slo(count: int, met: bool) -> None:
    records = [answered(1.0, 2.0)] * 200 + [rejected()] * count
    assert rejects_too_many(summarize(records, offered_rate=1.0).rejected_share) is not met
