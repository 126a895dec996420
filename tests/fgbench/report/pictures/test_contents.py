"""The content of each picture, before it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fgbench.metrics.slo import parse_slo
from fgbench.metrics.statistics import figure_interval
from fgbench.report.comparison import Comparison, compare
from fgbench.report.objectives import Objective
from fgbench.report.pictures.contents import MAX_POINTS, cumulated, pictures_of
from fgbench.report.pictures.picture import Bars, Panel, Picture, picked
from fgbench.results.run import Run

Make = Callable[..., Run]


def drawn(runs: list[Run], *slos: str) -> dict[str, Picture]:
    (comparison,) = compare(runs)
    return of(comparison, *slos)


def of(comparison: Comparison, *slos: str) -> dict[str, Picture]:
    objectives = [Objective(parse_slo(slo), comparison) for slo in slos]
    return {picture.name: picture for picture in pictures_of(comparison, objectives)}


def panel(picture: Picture, at: int = 0) -> Panel:
    found = picture.panels[at]
    assert isinstance(found, Panel)
    return found


def test_a_sweep_gives_all_six_pictures(sweep: list[Run]) -> None:
    pictures = drawn(sweep, "jct<0.8", "ttft<1,tpot<0.3")
    assert list(pictures) == [
        "latency",
        "latency-p95",
        "latency-p99",
        "attainment",
        "cdf",
        "breakdown",
        "queues",
    ]
    latency = panel(pictures["latency"], 2)
    assert latency.title == "mean JCT (s)"
    assert latency.level == 0.8
    ours, theirs = latency.lines
    assert (ours.label, theirs.label) == ("ours", "fastgen-fcfs")
    assert list(ours.xs) == [0.5, 1.0, 2.0]
    assert ours.ys[1] == pytest.approx((0.51 + 0.539 + 0.612) / 3)
    interval = figure_interval((0.51, 0.539, 0.612))
    assert interval is not None
    assert ours.intervals[1] == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert panel(pictures["latency-p95"], 2).level is None  # the bounds are on means
    assert [panel(pictures["attainment"], i).title for i in range(2)] == ["jct<0.8", "ttft<1, tpot<0.3"]
    assert len(pictures["cdf"].panels) == len(pictures["queues"].panels) == 6
    bars = pictures["breakdown"].panels[0]
    assert isinstance(bars, Bars)
    assert [bar.parts for bar in bars.bars] == [
        {"queued": 0.25, "swapped": 0.0, "prefill": 0.25, "decode": 0.5}
    ]


def test_incomplete_runs_are_in_no_picture(make_run: Make) -> None:
    assert drawn([make_run("a", status="running"), make_run("b", status="failed")], "jct<1") == {}
    runs = [make_run("a", 1.0), make_run("a"), make_run("b", 1.0), make_run("b", status="interrupted")]
    pictures = drawn(runs[:2] + runs[3:], "jct<1")
    for name in ("latency", "attainment", "cdf", "queues"):
        assert {line.label for line in pictures[name].lines} == {"a"}, name


def test_all_at_once_is_not_on_the_axis_of_rates(make_run: Make) -> None:
    pictures = drawn([make_run("a", "inf"), make_run("b", "inf")], "jct<1")
    assert list(pictures) == ["bars", "cdf", "queues"]
    assert panel(pictures["cdf"]).title == "JCT at all at once"


def test_points_above_capacity_are_hollow(make_run: Make) -> None:
    calm, overloaded = make_run("a", 1.0), make_run("a", 2.0)
    comparison = compare([calm, overloaded])[0]
    point = comparison.of("a")[1]
    object.__setattr__(point.entries[0].summary, "overloaded", True)
    assert list(panel(of(comparison, "jct<1")["latency"]).lines[0].hollow) == [False, True]


def test_a_wide_range_gets_a_logarithmic_axis(make_run: Make) -> None:
    narrow = drawn([make_run("a", 1.0, 1.0), make_run("a", 2.0, 4.0)])
    wide = drawn([make_run("a", 1.0, 1.0), make_run("a", 2.0, 40.0)])
    far_slo = drawn([make_run("a", 1.0, 1.0), make_run("a", 2.0, 4.0)], "jct<100")
    assert [panel(p["latency"], 2).y_log for p in (narrow, wide, far_slo)] == [False, True, True]


def test_backends_have_the_same_style_even_if_others_are_missing(make_run: Make) -> None:
    pictures = drawn(
        [make_run("a", 1.0), make_run("b", 1.0), make_run("c", 2.0, account=True), make_run("c", 1.0)]
    )
    styles = {(line.label, line.style) for picture in pictures.values() for line in picture.lines}
    assert len(styles) == 3


def test_some_of_many_rates_are_picked_with_a_note(make_run: Make) -> None:
    assert picked([1.0, 2.0]) == [1.0, 2.0]
    assert picked([float(n) for n in range(9)]) == [0.0, 2.0, 4.0, 6.0, 8.0]
    pictures = drawn([make_run("a", float(rate)) for rate in range(1, 10)])
    assert len(pictures["cdf"].panels) == 10
    assert pictures["cdf"].notes[0] == "5 of 9 loads"
    assert len(panel(pictures["latency"]).lines[0].xs) == 9


def test_a_large_distribution_is_thinned_but_contains_its_ends() -> None:
    xs, ys = cumulated([float(n) for n in range(100_000)])
    assert len(xs) == MAX_POINTS
    assert (xs[0], xs[-1], ys[-1]) == (0.0, 99_999.0, 1.0)
    assert all(y == pytest.approx((x + 1) / 100_000) for x, y in zip(xs, ys, strict=True))
    assert cumulated([3.0, 1.0]) == ([1.0, 3.0], [0.5, 1.0])
    assert cumulated([]) == ([], [])


def test_closed_loops_are_drawn_against_concurrency(closed_loops: list[Run]) -> None:
    pictures = drawn(closed_loops, "jct<3")
    latency = panel(pictures["latency"], 2)
    assert latency.x == panel(pictures["attainment"]).x == "concurrency (requests in flight)"
    assert [list(line.xs) for line in latency.lines] == [[1.0, 4.0, 16.0]] * 2
    assert list(latency.x_ticks) == [1.0, 4.0, 16.0]
    assert latency.x_log
    assert panel(pictures["queues"]).title == "1 in flight"
    assert panel(pictures["cdf"]).title == "JCT at 1 in flight"


def test_one_level_is_drawn_as_bars(make_run: Make) -> None:
    """A line needs two points."""
    runs = [
        make_run(name, 2.0, latency, seed=seed)
        for name, latency in (("a", 1.0), ("b", 2.0))
        for seed in range(3)
    ]
    pictures = drawn(runs)
    assert "latency" not in pictures
    panels = pictures["bars"].panels
    assert [panel.title for panel in panels][:3] == ["mean JCT / token", "mean TTFT", "mean JCT"]
    first = panels[2]
    assert isinstance(first, Bars)
    assert {bar.label: bar.total for bar in first.bars} == {"a": pytest.approx(1.0), "b": pytest.approx(2.0)}
    assert len({bar.style for bar in first.bars}) == 2
    assert "bars" not in drawn([make_run("a", 1.0), make_run("a", 2.0)])


def test_latency_by_output_length_has_a_point_for_each_bucket(make_run: Make) -> None:
    def with_lengths(name: str) -> Run:
        run = make_run(name, records=40, num_prompts=40)
        records = tuple(replace(one, output_tokens=8 if i % 2 else 200) for i, one in enumerate(run.records))
        return Run(run.path, run.info, records)

    picture = drawn([with_lengths("a"), with_lengths("b")])["lengths"]
    assert [panel.title.split(" at ")[0] for panel in picture.panels] == ["mean JCT / token", "mean JCT"]
    for line in picture.lines:
        assert len(line.xs) == len(line.ys) == 2
        assert line.xs[0] < 16 < 128 < line.xs[1] < 256
