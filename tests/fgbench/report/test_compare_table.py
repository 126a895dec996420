from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from fgbench.metrics.slo import parse_slo
from fgbench.report.compare_table import comparison_tables
from fgbench.report.comparison import compare
from fgbench.report.objectives import Objective
from fgbench.results.run import Run
from fgengine.cost import CostModel

Make = Callable[..., Run]


def shown(runs: list[Run], width: int = 100, *slos: str) -> str:
    (comparison,) = compare(runs, cost_of=lambda _: CostModel(0.1))
    console = Console(width=width, record=True, file=io.StringIO())
    objectives = [Objective(parse_slo(slo), comparison) for slo in slos]
    console.print(comparison_tables(comparison, objectives, width))
    return console.export_text()


def test_the_table_shows_figures_ratios_marks_and_notes(make_run: Make) -> None:
    text = shown(
        [
            make_run("fastgen-fcfs", "inf", latency=2.0),
            make_run("fastgen", "inf", latency=1.0, status="running", records=3, account=True),
        ]
    )
    for expected in (
        *("all at once", "0.50x", "3 of 4", "▲ above capacity", "◌ not a complete run", "slowdown"),
        *("fairness (Jain)", "250 ms", "4 KiB", "One seed: not judged"),
    ):
        assert expected in text


def test_thrashing_is_visible_even_if_requests_hardly_wait_for_copies(
    make_run: Make, server_stats: dict[str, Any]
) -> None:
    runs = [make_run("fastgen-fcfs"), make_run("fastgen", account=True, server_stats=server_stats)]
    lines = [" ".join(line.split()) for line in shown(runs).splitlines()]
    assert "waiting for copies / JCT 0% -" in lines
    assert "device idle for copies 45% -" in lines
    assert "under pressure 31 s -" in lines
    older = shown([make_run("fastgen-fcfs"), make_run("fastgen", account=True)])
    assert "waiting for copies" in older
    assert "device idle" not in older
    assert "pressure" not in older


def test_seeds_give_intervals_and_verdicts(sweep: list[Run]) -> None:
    text = shown(sweep, 100, "jct<0.8")
    assert "0.50x ✔" in text
    assert "ratio to fastgen-fcfs, with its 95% interval" in text
    assert re.search(r"0\.50x ✔ 0\.4\d–0\.5\d", text)
    assert "12 of 12" in text
    # The mean JCT at 1/s is 0.51, 0.539 and 0.612 s: exp(-0.594 -+ 4.303 * 0.0935 / sqrt(3)).
    assert "438–696 ms" in text
    assert "✔ better, ✘ worse, ≈ not distinguishable" in text
    assert "not judged" not in text


def test_the_slo_table_shows_up_to_which_rate_each_backend_meets_it(make_run: Make) -> None:
    runs = [
        *(make_run("fastgen-fcfs", rate, latency) for rate, latency in ((1.0, 1.0), (2.0, 3.0))),
        *(make_run("ours", rate, latency) for rate, latency in ((1.0, 0.5), (2.0, 1.0))),
    ]
    text = shown(runs, 100, "jct<2")
    for expected in ("SLO jct<2", "> 2/s > 1.33x", "1.5/s", "no 0% 0/s", "yes 100% 1.6/s", "1.05/s"):
        assert expected in text


def test_runs_left_out_of_a_point_are_reported(make_run: Make) -> None:
    runs = [make_run("a"), make_run("a", seed=1, status="running", records=1), make_run("b")]
    assert "Left out: 1 run that is not complete" in shown(runs)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize("backends", [1, 2, 4, 6])
@pytest.mark.slow
def test_no_line_is_wider_than_the_terminal_and_no_digit_is_lost(
    make_run: Make, width: int, backends: int
) -> None:
    names = ["fastgen-fcfs", *(f"fastgen (policy p{n}, offloading proactive)" for n in range(1, backends))]
    runs = [make_run(name, latency=1.2345 + n, account=True) for n, name in enumerate(names)]
    text = shown(runs, width, "ttft<1.55,normalized_latency<0.15")
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    folded = "".join(text.split())
    for n in range(backends):
        assert f"{1.2345 + n:.3g}s" in folded


def test_each_table_of_many_backends_has_the_baseline(make_run: Make) -> None:
    text = shown([make_run(f"backend-{n}", latency=1.0 + n) for n in range(6)], 100)
    assert text.count("backend-0") == 4  # the headline, two tables, the line that says what x means
    assert all(f"backend-{n}" in text for n in range(6))


def test_closed_loops_are_compared_by_concurrency(closed_loops: list[Run]) -> None:
    text = shown(closed_loops, 100, "jct<7")
    assert "smollm2-135m on synthetic, 4 prompts, closed-loop arrivals" in text
    assert "at the same concurrency" in text
    assert all(f"{workers} in flight" in text for workers in (1, 4, 16))
    assert "7 in flight" in text  # the concurrency up to which the SLO is met
