"""The table of metrics: each row is complete, and one row is enough for every place that shows it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fgbench.metrics.metric import METRICS, OF_REQUESTS, Metric, metric_called
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import Summary, summarize
from fgbench.report.quantities import HEADLINES, QUANTITIES

RECORD = RequestRecord(
    0, 1.0, 1.1, 10, 3, 3, first_token=2.0, last_token=4.0, token_times=(2.0, 3.5, 4.0), finished=4.1
)


def test_keys_and_aliases_are_unique() -> None:
    names = [name for metric in METRICS for name in (metric.key, *metric.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
def test_a_row_is_complete(metric: Metric) -> None:
    assert (metric.of_request is None) != (metric.of_run is None)
    assert metric_called(metric.key) is metric
    assert metric.definition.endswith(".")
    assert not metric.live or metric.of_request is not None


def test_values_of_a_request() -> None:
    found = {key: tuple(values(RECORD)) for key, values in OF_REQUESTS.items()}
    assert found["ttft"] == (1.0,)
    assert found["jct"] == (3.0,)
    assert found["normalized_latency"] == (1.0,)
    assert found["tpot"] == (1.0,)
    assert found["itl"] == (1.5, 0.5)
    assert found["lag"] == pytest.approx((0.1,))
    assert found["ttft_from_sent"] == pytest.approx((0.9,))


def test_compare_shows_latencies_and_judges_mean_itl() -> None:
    assert {"jct", "ttft", "itl"} <= {quantity.metric for quantity in QUANTITIES}
    assert "ITL" in {quantity.name for quantity in HEADLINES}, "its mean gets a verdict"


def test_the_share_of_its_time_that_a_request_waited_for_copies() -> None:
    share = OF_REQUESTS["time_swapped_share"]
    server = {"queued": 1.0, "swapped": 2.0, "prefill": 0.5, "decode": 0.5, "preemptions": 7.0}
    assert share(replace(RECORD, server=server)) == (0.5,)
    assert share(replace(RECORD, server={"queued": 1.0})) == (0.0,)
    assert share(RECORD) == (), "the server reported nothing"
    statistics = [q.statistic for q in QUANTITIES if q.metric == "time_swapped_share"]
    assert statistics == ["mean", "p99"]


def test_a_record_without_times_has_no_latency() -> None:
    nothing = RequestRecord(0, 1.0, 1.0, 10, 3)
    assert {key for key, values in OF_REQUESTS.items() if values(nothing)} == {"lag", "output_length"}


def test_a_summary_keeps_all_distributions_in_json() -> None:
    summary = summarize([RECORD], offered_rate=1.0)
    assert set(summary.distributions) <= set(OF_REQUESTS)
    assert summary.figure("itl", "max") == 1.5
    data = json.loads(json.dumps(summary.to_dict()))
    assert set(OF_REQUESTS) <= set(data), "each has its key, with null if there is none"
    assert Summary.from_dict(data) == summary
