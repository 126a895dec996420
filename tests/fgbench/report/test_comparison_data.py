"""The comparison as JSON and CSV, parsed again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from fgbench.metrics.slo import parse_slo
from fgbench.metrics.statistics import figure_interval
from fgbench.report.comparison import Comparison, compare
from fgbench.report.comparison_data import COLUMNS, comparison_json, comparison_rows
from fgbench.report.objectives import Objective
from fgbench.results.run import Run
from fgengine.cost import CostModel

Make = Callable[..., Run]


def judged(runs: list[Run], *slos: str) -> tuple[Comparison, list[Objective]]:
    (comparison,) = compare(runs, cost_of=lambda _: CostModel(0.1))
    return comparison, [Objective(parse_slo(slo), comparison) for slo in slos]


def test_json_is_strict_and_complete(sweep: list[Run]) -> None:
    data = json.loads(json.dumps(comparison_json(*judged(sweep, "jct<0.8")), allow_nan=False))
    assert data["workload"]["seeds"] == [0, 1, 2]
    ours = next(point for point in data["points"] if (point["label"], point["rate"]) == ("ours", 1.0))
    mean = ours["figures"]["jct"]["mean"]
    assert mean["value"] == pytest.approx((0.51 + 0.539 + 0.612) / 3)
    interval = figure_interval((0.51, 0.539, 0.612))
    assert interval is not None
    assert (mean["low"], mean["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert mean["verdict"] == "better"
    assert mean["ratio"]["seeds"] == 3
    assert mean["ratio"]["low"] < mean["ratio"]["value"] < mean["ratio"]["high"]
    assert ours["figures"]["queued"]["value"]["value"] == 0.25
    assert ours["figures"]["queued"]["value"]["ratio"] is None
    assert ours["figures"]["fairness"]["value"]["value"] == pytest.approx(1.0)
    (slo,) = data["slos"]
    backend = next(each for each in slo["backends"] if each["label"] == "ours")
    assert backend["ratio"]["value"] == pytest.approx(2.0, rel=0.03)
    assert backend["verdict"] == "better"
    assert len(data["runs"]) == 18
    assert data["runs"][0]["summary"]["requests"] == 4


def test_infinite_and_unknown_rates_are_valid_json(make_run: Make) -> None:
    runs = [make_run("a", "inf"), make_run("b", "inf", status="running", records=2)]
    data = json.loads(json.dumps(comparison_json(*judged(runs, "jct<0.8")), allow_nan=False))
    assert [point["rate"] for point in data["points"]] == ["inf", "inf"]
    assert [point["complete"] for point in data["points"]] == [False, True]
    assert data["slos"][0]["backends"][0]["rate"] == {"value": None, "low": None, "high": None}


def test_a_rate_outside_the_measured_ones_has_one_bound(make_run: Make) -> None:
    comparison, objectives = judged([make_run("a", 2.0, 0.5), make_run("b", 2.0, 5.0)], "jct<0.8")
    by_label = {
        each["label"]: each for each in comparison_json(comparison, objectives)["slos"][0]["backends"]
    }
    assert by_label["a"]["rate"] == {"value": None, "low": 2.0, "high": None}
    assert by_label["b"]["rate"] == {"value": None, "low": None, "high": 2.0}
    assert by_label["b"]["ratio"] == {"value": None, "low": None, "high": 1.0}


def test_csv_has_one_row_per_figure(sweep: list[Run]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(comparison_rows(*judged(sweep, "ttft<1,tpot<1")))
    rows = list(csv.DictReader(io.StringIO(text.getvalue())))
    (mean,) = (
        row
        for row in rows
        if (row["label"], row["rate"], row["metric"], row["statistic"]) == ("ours", "1.0", "jct", "mean")
    )
    assert float(mean["value"]) == pytest.approx((0.51 + 0.539 + 0.612) / 3)
    assert float(mean["ratio_low"]) < float(mean["ratio"]) < float(mean["ratio_high"]) < 1.0
    assert (mean["verdict"], mean["seeds"], mean["overloaded"]) == ("better", "3", "")  # too few requests
    metrics = {row["metric"] for row in rows}
    assert {"attainment", "goodput", "rate_at_slo", "rate_at_95%_attainment", "slowdown"} <= metrics
    assert {row["statistic"] for row in rows if row["metric"] == "goodput"} == {"ttft<1,tpot<1"}
    assert not any(row["metric"] == "queued" for row in rows if row["label"] == "fastgen-fcfs")


def test_kv_memory_is_in_json_and_csv(make_run: Make, server_stats: dict[str, Any]) -> None:
    comparison, objectives = judged([make_run("a"), make_run("b", server_stats=server_stats)], "jct<7")
    data = comparison_json(comparison, objectives)
    ours, theirs = (point["figures"] for point in data["points"])
    assert ours["copy_wait_share"]["value"]["value"] == 0.45
    assert ours["pressure_seconds"]["value"]["value"] == 31.0
    assert "copy_wait_share" not in theirs
    account = {"seconds": 100.0, "pressure_seconds": 31.0, "copy_wait_seconds": 45.0, "replicas": 1}
    assert [run["memory"] for run in data["runs"]] == [account, None]
    rows = list(comparison_rows(comparison, objectives))
    assert [(r["label"], r["value"]) for r in rows if r["metric"] == "copy_wait_share"] == [("b", 0.45)]
    assert [(r["label"], r["value"]) for r in rows if r["metric"] == "pressure_seconds"] == [("b", 31.0)]


def test_closed_loops_have_a_concurrency_instead_of_a_rate(closed_loops: list[Run]) -> None:
    comparison, objectives = judged(closed_loops, "jct<7")
    data = comparison_json(comparison, objectives)
    assert [point["concurrency"] for point in data["points"]] == [1.0, 1.0, 4.0, 4.0, 16.0, 16.0]
    assert not any("rate" in point for point in data["points"])
    by_label = {each["label"]: each for each in data["slos"][0]["backends"]}
    assert by_label["theirs"]["concurrency"]["value"] == pytest.approx(7.0)
    rows = list(comparison_rows(comparison, objectives))
    assert all(set(row) <= set(COLUMNS) for row in rows)
    assert {row["concurrency"] for row in rows if row["metric"] == "jct"} == {1.0, 4.0, 16.0}
    assert "concurrency_at_slo" in {row["metric"] for row in rows}
