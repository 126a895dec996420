"""The headline of a comparison: which backend is faster under the highest load, and by how much."""

from __future__ import annotations

from collections.abc import Callable

from fgbench.metrics.slo import parse_slo
from fgbench.report.comparison import compare
from fgbench.report.headline import MAX_LINES, headline
from fgbench.report.objectives import Objective
from fgbench.results.run import Run

Make = Callable[..., Run]


def lines_of(runs: list[Run], slo: str = "jct<1.5") -> list[str]:
    (comparison,) = compare(runs)
    return headline(comparison, [Objective(parse_slo(slo), comparison)])


def test_the_best_backend_under_the_highest_load_is_first(make_run: Make) -> None:
    latencies = {"fastgen": (1.0, 1.0), "fastgen-fcfs": (1.0, 2.0), "vllm": (1.0, 4.0)}
    runs = [
        make_run(name, rate, latency)
        for name, pair in latencies.items()
        for rate, latency in zip((1.0, 2.0), pair, strict=True)
    ]
    lines = lines_of(runs)
    assert "4 prompts" in lines[0]
    assert lines[1] == "2 requests / s, the highest of 2 loads: mean JCT / token and TTFT"
    assert [line.split()[0] for line in lines[2:5]] == ["fastgen", "fastgen-fcfs", "vllm"]
    assert lines[2].split() == ["fastgen", "△", "500", "ms", "(0.50x)", "500", "ms", "(0.50x)"]
    assert lines[3].split() == ["fastgen-fcfs", "△", "(baseline)", "1", "s", "1", "s"]
    assert "(2.00x)" in lines[4]
    assert lines[5] == "jct<1.5 is met up to: fastgen > 2/s, vllm 1.17/s, fastgen-fcfs 1.5/s"


def test_the_headline_shows_verdicts_and_marks(sweep: list[Run], make_run: Make) -> None:
    assert any("x ✔)" in line for line in lines_of(sweep))
    running = make_run("fastgen", "inf", status="running", records=3)
    assert any("◌" in line for line in lines_of([running, make_run("fastgen-fcfs", "inf")]))


def test_one_backend_has_no_baseline_and_one_load_has_no_limit(make_run: Make) -> None:
    lines = lines_of([make_run("fastgen")])
    assert len(lines) == 3
    assert "baseline" not in "".join(lines)
    assert lines[1] == "2 requests / s: mean JCT / token and TTFT"


def test_many_backends_are_cut_off(make_run: Make) -> None:
    runs = [make_run(f"fastgen-p{n}", rate, 1.0 + n) for n in range(12) for rate in (1.0, 2.0)]
    lines = lines_of(runs)
    assert len(lines) <= MAX_LINES
    assert "  and 7 more below" in lines
