"""Rejected requests in every format of a comparison, and their effect on SLOs."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from fgbench.metrics.slo import parse_slo
from fgbench.report.compare_table import comparison_tables
from fgbench.report.comparison import Comparison, compare
from fgbench.report.comparison_data import comparison_json, comparison_rows
from fgbench.report.comparison_markdown import comparison_markdown
from fgbench.report.objectives import Objective
from fgbench.results.run import Run

SLO = parse_slo("jct<5")


@pytest.fixture
def comparison(make_run: Callable[..., Run]) -> Comparison:
    """Return a comparison in which fcfs rejects a quarter of the requests at 2/s and half of them at 4/s."""
    runs = [
        make_run("fastgen-fcfs", 1.0, records=100),
        make_run("fastgen-fcfs", 2.0, records=100, rejected=25),
        make_run("fastgen-fcfs", 4.0, records=100, rejected=50),
        *(make_run("ours", rate, records=100) for rate in (1.0, 2.0, 4.0)),
    ]
    (found,) = compare(runs)
    return found


def test_the_tables_show_the_share_and_explain_it(comparison: Comparison) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(comparison_tables(comparison, [Objective(SLO, comparison)], 120))
    lines = [line.split() for line in console.export_text().splitlines() if "rejected" in line]
    assert [line[1:3] for line in lines[:3]] == [["0%", "0%"], ["0%", "25%"], ["0%", "50%"]]
    assert "rejected because the server's queue was full" in " ".join(lines[3])


def test_without_rejections_there_is_no_note(make_run: Callable[..., Run]) -> None:
    (comparison,) = compare([make_run("ours"), make_run("fastgen-fcfs")])
    assert "queue was full" not in comparison_markdown(comparison, [])


def test_files_and_markdown_have_the_share(comparison: Comparison) -> None:
    data = comparison_json(comparison, [Objective(SLO, comparison)])
    shares = {
        (point["label"], point["rate"]): point["figures"]["rejected_share"]["value"]["value"]
        for point in data["points"]
    }
    assert shares["fastgen-fcfs", 2.0] == 0.25
    assert shares["ours", 2.0] == 0.0
    rejected = [run["summary"]["rejected"] for run in data["runs"] if run["label"] == "fastgen-fcfs"]
    assert rejected == [0, 25, 50]
    rows = [row for row in comparison_rows(comparison, []) if row["metric"] == "rejected_share"]
    assert sorted(row["value"] for row in rows) == [0.0, 0.0, 0.0, 0.0, 0.25, 0.5]
    markdown = comparison_markdown(comparison, [])
    head, _, *lines = [line for line in markdown.splitlines() if line.startswith("|")]
    column = [name.strip() for name in head.split("|")].index("rejected")
    cells = sorted(line.split("|")[column].strip() for line in lines[:6])
    assert cells == ["0%", "0%", "0%", "0%", "25%", "50%"]


def test_a_server_does_not_meet_an_slo_by_rejecting(comparison: Comparison) -> None:
    objective = Objective(SLO, comparison)
    points = {(point.label, point.level): point for point in comparison.points}
    busy = points["fastgen-fcfs", 2.0]
    assert objective.met_by(busy) is False
    assert objective.met_by(points["ours", 2.0]) is True
    share, good = objective.attainment(busy), objective.goodput(busy)
    assert share is not None
    assert good is not None
    assert share.value == 0.75
    all_served = objective.goodput(points["ours", 2.0])
    assert all_served is not None
    assert good.value == pytest.approx(0.75 * all_served.value, rel=0.03)
    reached = objective.rate("fastgen-fcfs")
    assert reached is not None
    assert reached.describe("/s") == "1 to 2/s"
    ours = objective.rate("ours")
    assert ours is not None
    assert ours.describe("/s") == "> 4/s"
    attained = objective.attained_up_to("fastgen-fcfs")
    assert attained is not None
    assert attained.exact == pytest.approx(1.2)
