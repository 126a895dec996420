from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from fgbench.metrics.crossing import Range
from fgbench.metrics.slo import parse_slo
from fgbench.report.comparison import compare
from fgbench.report.objectives import Objective
from fgbench.results.run import Run

Make = Callable[..., Run]


def objective(runs: list[Run], slo: str) -> Objective:
    (comparison,) = compare(runs)
    return Objective(parse_slo(slo), comparison)


def test_the_rate_at_an_slo_is_interpolated_for_each_backend(make_run: Make) -> None:
    runs = [
        *(make_run("fastgen-fcfs", rate, latency) for rate, latency in ((1.0, 1.0), (2.0, 3.0))),
        *(make_run("ours", rate, latency) for rate, latency in ((1.0, 0.5), (2.0, 1.0), (3.0, 3.0))),
        make_run("never", 1.0, 0.5),
        make_run("always", 1.0, 9.0),
    ]
    found = objective(runs, "jct<2")
    assert found.rate("fastgen-fcfs") == Range(1.5, 1.5)
    assert found.rate("ours") == Range(2.5, 2.5)
    assert found.ratio("ours") == Range(pytest.approx(5 / 3), pytest.approx(5 / 3))
    assert found.ratio("fastgen-fcfs") is None
    assert found.rate("never") == Range(1.0, math.inf)
    assert found.rate("always") == Range(0.0, 1.0)
    assert objective(runs, "jct<2,p95 ttft<0.375").rate("ours") == Range(1.5, 1.5)  # the stricter one


def test_incomplete_runs_and_unknown_figures_give_no_rate(make_run: Make) -> None:
    assert objective([make_run("a", status="running")], "jct<2").rate("a") is None
    one_token = make_run("a")
    no_gaps = Run(one_token.path, one_token.info, ())
    assert objective([no_gaps], "tpot<2").rate("a") is None
    assert objective([no_gaps], "tpot<2").met_by(objective([no_gaps], "tpot<2").comparison.points[0]) is None


def test_attainment_and_goodput_are_means_over_seeds(make_run: Make) -> None:
    runs = [make_run("a", latency=latency, seed=seed) for seed, latency in enumerate((1.0, 1.0, 3.0))]
    found = objective(runs, "jct<2")
    (point,) = found.comparison.points
    share, good = found.attainment(point), found.goodput(point)
    assert share is not None
    assert good is not None
    assert share.value == pytest.approx(2 / 3)
    assert share.interval is not None
    assert good.value == pytest.approx(
        (4 / 2.5 + 4 / 2.5 + 0.0) / 3, rel=1e-3
    )  # the last of four leaves at 1.5 s
    assert found.met_by(point)  # the mean over seeds is 1.67 s
    assert not objective(runs, "jct<1.5").met_by(point)


def test_the_rate_up_to_which_95_percent_of_requests_attain_the_slo(make_run: Make) -> None:
    runs = [make_run("a", 1.0, 1.0), make_run("a", 2.0, 3.0)]
    assert objective(runs, "jct<2").attained_up_to("a") == Range(pytest.approx(1.05), pytest.approx(1.05))


def test_the_ratio_of_rates_is_judged_over_seeds(sweep: list[Run], make_run: Make) -> None:
    """The SLO bounds JCT, which grows with the rate in ``sweep``."""
    found = objective(sweep, "jct<0.8")
    ratio = found.paired("ours")
    assert ratio is not None
    assert ratio.seeds == 3
    assert ratio.value == pytest.approx(2.0, rel=0.03)
    assert found.verdict("ours") == "better"
    assert found.verdict("fastgen-fcfs") is None
    one = objective([run for run in sweep if run.info["workload"]["seed"] == 0], "jct<0.8")
    assert one.verdict("ours") == "one seed: not judged"


def test_seeds_without_a_crossing_are_not_left_out_silently(sweep: list[Run]) -> None:
    """The remaining seeds would favour one of the backends."""
    found = objective(sweep, "jct<1.05")  # crossed by seeds 1 and 2 of ours, not by 0
    assert found.paired("ours") is None
    assert found.verdict("ours") is None


def test_a_trimmed_run_is_judged_by_the_requests_that_count(make_run: Make) -> None:
    """Requests are sent at 0, 0.5, 1 and 1.5 s."""
    run = make_run("a", records=4)
    first = replace(run.records[0], last_token=9.0, finished=9.0)
    trimmed = Run(run.path, run.info | {"trim": {"start": "10%"}}, (first, *run.records[1:]))
    untrimmed = Run(run.path, run.info, trimmed.records)
    for each, share in ((trimmed, 1.0), (untrimmed, 0.75)):
        found = objective([each], "jct<2")
        attained = found.attainment(found.comparison.points[0])
        assert attained is not None
        assert attained.value == share
    assert len(compare([trimmed, untrimmed])) == 2  # figures of different parts are not comparable
