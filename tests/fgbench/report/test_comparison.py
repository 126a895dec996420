from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fgbench.report.comparison import Comparison, ComparisonPoint, compare
from fgbench.report.marks import OVERLOADED
from fgbench.report.notes import notes
from fgbench.report.quantities import (
    HEADLINES,
    IN_THE_SERVER,
    LATENCIES,
    QUANTITIES,
    SLOWDOWNS,
    THROUGHPUTS,
    Quantity,
    quantity_called,
)
from fgbench.results.run import Run
from fgengine.cost import CostModel

Make = Callable[..., Run]
MEAN_JCT = next(q for q in LATENCIES if (q.metric, q.statistic) == ("jct", "mean"))
P99_NORMALIZED = next(q for q in LATENCIES if (q.metric, q.statistic) == ("normalized_latency", "p99"))


def point(comparison: Comparison, label: str, rate: float) -> ComparisonPoint:
    return next(each for each in comparison.of(label) if each.level == rate)


def value(comparison: Comparison, at: ComparisonPoint, metric: str, statistic: str | None = None) -> float:
    cell = comparison.cell(at, quantity_called(metric, statistic))
    assert cell is not None
    return cell.value


def test_ratios_are_taken_at_the_same_rate_only(make_run: Make) -> None:
    runs = [
        make_run("fastgen-fcfs", 1.0, latency=2.0),
        make_run("fastgen", 1.0, latency=1.0),
        make_run("fastgen-fcfs", 2.0, latency=8.0),
        make_run("fastgen", 2.0, latency=2.0),
        make_run("fastgen", 3.0, latency=2.0),
    ]
    (comparison,) = compare(runs)
    assert comparison.baseline == "fastgen-fcfs"
    assert comparison.levels == [1.0, 2.0, 3.0]
    assert comparison.labels == ["fastgen", "fastgen-fcfs"]

    def ratio(label: str, rate: float, quantity: Quantity) -> float | None:
        cell = comparison.cell(point(comparison, label, rate), quantity)
        return None if cell is None or cell.ratio is None else cell.ratio.value

    assert ratio("fastgen", 1.0, MEAN_JCT) == pytest.approx(0.5)
    assert ratio("fastgen", 2.0, P99_NORMALIZED) == pytest.approx(0.25)
    assert ratio("fastgen", 3.0, MEAN_JCT) is None
    assert ratio("fastgen-fcfs", 1.0, MEAN_JCT) is None


def test_seeds_are_averaged_and_ratios_paired(sweep: list[Run]) -> None:
    (comparison,) = compare(sweep)
    ours = point(comparison, "ours", 1.0)
    assert ours.values("jct", "mean") == {
        0: pytest.approx(0.5 * 1.02),
        1: pytest.approx(0.55 * 0.98),
        2: pytest.approx(0.6 * 1.02),
    }
    cell, throughput = comparison.cell(ours, MEAN_JCT), comparison.cell(ours, THROUGHPUTS[0])
    baseline = comparison.cell(point(comparison, "fastgen-fcfs", 1.0), MEAN_JCT)
    assert cell is not None
    assert cell.value == pytest.approx((0.51 + 0.539 + 0.612) / 3)
    assert cell.ratio is not None
    assert cell.ratio.seeds == 3
    assert cell.ratio.value == pytest.approx(0.5 * (1.02 * 0.98 * 1.02) ** (1 / 3))
    assert cell.verdict == "better"
    assert throughput is not None
    assert throughput.verdict == "better"
    assert baseline is not None
    assert (baseline.ratio, baseline.verdict) == (None, None)


def test_few_seeds_and_incomplete_runs_are_not_judged(make_run: Make) -> None:
    def verdict(runs: list[Run]) -> str | None:
        (comparison,) = compare(runs)
        cell = comparison.cell(comparison.of("b")[0], MEAN_JCT)
        assert cell is not None
        return cell.verdict

    assert verdict([make_run("a"), make_run("b")]) == "one seed: not judged"
    two = [make_run(name, seed=seed) for name in "ab" for seed in range(2)]
    assert verdict(two) == "2 seeds: not judged"
    cut = [make_run("a"), make_run("b", status="running", records=2)]
    assert verdict(cut) == "incomplete: not judged"
    other_seed = [make_run("a", seed=0), make_run("b", seed=1)]
    assert verdict(other_seed) is None


def test_an_incomplete_run_counts_only_if_there_is_no_complete_one(make_run: Make) -> None:
    complete = make_run("a", latency=1.0)
    cut = make_run("a", latency=5.0, seed=1, status="running", records=2)
    (comparison,) = compare([complete, cut])
    (both,) = comparison.of("a")
    assert (both.complete, both.seeds) == (True, [0])
    assert value(comparison, both, "jct", "mean") == pytest.approx(1.0)
    (comparison,) = compare([cut])
    (alone,) = comparison.of("a")
    assert not alone.complete
    assert value(comparison, alone, "jct", "mean") == pytest.approx(5.0)


def test_labels_show_the_settings_that_differ(make_run: Make) -> None:
    runs = [
        make_run("fastgen", settings={"max_batch_size": 8, "block_size": 16}),
        make_run("fastgen", settings={"max_batch_size": 16, "block_size": 16}),
        make_run("fastgen", settings={"max_batch_size": 16, "block_size": 16}),
        make_run("fastgen", settings={"max_batch_size": 16, "block_size": 16}, seed=1),
    ]
    (comparison,) = compare(runs)
    assert {each.label: each.seeds for each in comparison.points} == {
        "fastgen (max_batch_size 8)": [0],
        "fastgen (max_batch_size 16)": [0, 1],
        "fastgen (max_batch_size 16) #2": [0],
    }


def test_the_baseline_is_a_name_or_a_folder(make_run: Make, tmp_path: Path) -> None:
    runs = [make_run("a"), make_run("b", path=str(tmp_path))]
    assert compare(runs)[0].baseline == "a"
    assert compare(runs, "b")[0].baseline == "b"
    assert compare(runs, str(tmp_path))[0].baseline == "b"
    with pytest.raises(ValueError, match="no run is called c: choose the baseline among a, b"):
        compare(runs, "c")


def test_slowdown_and_fairness_need_a_cost_model(make_run: Make) -> None:
    cost = CostModel(step=0.25)  # two tokens alone: 0.5 s
    (comparison,) = compare([make_run("a", latency=1.5)], cost_of={"smollm2-135m": cost}.get)
    (alone,) = comparison.of("a")
    assert value(comparison, alone, "slowdown", "mean") == pytest.approx(3.0)
    assert value(comparison, alone, "fairness") == pytest.approx(1.0)
    (comparison,) = compare([make_run("a")])
    assert all(comparison.cell(comparison.of("a")[0], quantity) is None for quantity in SLOWDOWNS)


def test_every_quantity_works_for_a_run_of_any_server(make_run: Make, server_stats: dict[str, Any]) -> None:
    (comparison,) = compare(
        [make_run("fastgen", account=True, server_stats=server_stats), make_run("vllm")],
        cost_of=lambda _: CostModel(0.1),
    )
    ours, theirs = comparison.of("fastgen")[0], comparison.of("vllm")[0]
    assert [cell.quantity for cell in comparison.cells(ours)] == list(QUANTITIES)
    found = {cell.quantity for cell in comparison.cells(theirs)}
    assert set(QUANTITIES) - found == set(IN_THE_SERVER)
    assert value(comparison, ours, "queued") == 0.25
    assert value(comparison, ours, "bytes_moved") == 4096.0
    assert value(comparison, ours, "swapped_share") == 0.0
    assert value(comparison, ours, "copy_wait_share") == 0.45
    assert value(comparison, ours, "pressure_seconds") == 31.0


def test_a_point_is_overloaded_if_any_seed_is(make_run: Make) -> None:
    (comparison,) = compare([make_run("a", seed=0), make_run("a", seed=1)])
    (calm,) = comparison.of("a")
    assert OVERLOADED not in calm.marks
    first, second = calm.entries
    overloaded = replace(second, summary=replace(second.summary, overloaded=True))
    assert OVERLOADED in replace(calm, entries=(first, overloaded)).marks


def test_levels_are_described_in_words(make_run: Make) -> None:
    (at_once,) = compare([make_run("a", "inf")])
    (closed,) = compare([make_run("a", "inf", arrival_process={"name": "closed", "concurrency": 8})])
    assert [at_once.axis.describe(rate) for rate in (1.0, 2.5, math.inf)] == [
        "1 request / s",
        "2.5 requests / s",
        "all at once",
    ]
    assert [closed.axis.describe(level) for level in closed.levels] == ["8 in flight"]
    assert OVERLOADED not in closed.points[0].marks


def test_verdicts_that_are_not_given_do_not_count_as_tests(sweep: list[Run]) -> None:
    """Benjamini and Hochberg's limit depends on the number of verdicts. Only those that are shown count."""
    (alone,) = compare([run for run in sweep if run.info["workload"]["rate"] == 1.0])
    incomplete = [
        replace(run, info=run.info | {"status": "interrupted"})
        if run.info["workload"]["rate"] == 2.0 and run.info["backend"]["name"] == "fastgen-fcfs"
        else run
        for run in sweep
        if run.info["workload"]["rate"] != 0.5
    ]
    (with_another,) = compare(incomplete)
    for quantity in HEADLINES:
        if quantity.better is not None:
            assert with_another._largest_p(quantity) == alone._largest_p(quantity)


def test_failed_requests_are_said(make_run: Make) -> None:
    run = make_run("new")
    broken = [replace(record, error="http 500: no") for record in run.records[:1]]
    (comparison,) = compare([make_run("fastgen-fcfs"), replace(run, records=(*broken, *run.records[1:]))])
    assert any("Some requests failed (new: 1 of 4)" in note.text for note in notes(comparison) if note.warns)
    assert comparison.of("new")[0].answered == "3 of 4"


def test_a_level_without_verdicts_takes_none_from_another(make_run: Make) -> None:
    """Alone, a difference has p = 0.04. With a second verdict, which is chance, it would have to be 0.025."""

    def runs(rate: float, logs: tuple[float, ...], status: str) -> list[Run]:
        return [
            run
            for seed, log in enumerate(logs)
            for run in (
                make_run("fastgen-fcfs", rate, 1.0, seed=seed, status=status),
                make_run("new", rate, math.exp(log), seed=seed),
            )
        ]

    for status, verdict in (("interrupted", "worse"), ("complete", "not distinguishable")):
        certain = runs(1.0, (0.065, 0.1, 0.135), "complete")
        (found,) = compare([*certain, *runs(2.0, (-0.1, 0.0, 0.1), status)])
        cell = found.cell(point(found, "new", 1.0), MEAN_JCT)
        assert cell is not None
        assert cell.verdict == verdict
