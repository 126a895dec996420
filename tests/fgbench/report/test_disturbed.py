"""Runs disturbed by other programs are marked in every format of a comparison."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from fgbench.metrics.accounts import MachineAccount
from fgbench.report.compare_table import comparison_tables
from fgbench.report.comparison import Comparison, compare
from fgbench.report.comparison_data import comparison_json, comparison_rows
from fgbench.report.comparison_markdown import comparison_markdown
from fgbench.report.marks import DISTURBED
from fgbench.report.overview import overview
from fgbench.report.pictures.contents import pictures_of
from fgbench.report.run_tables import run_table
from fgbench.results.files import write_json
from fgbench.results.run import Run, summary_of

BUSY = MachineAccount(100.0, 0.93, 1.02, 0.95, 0.05, 0.04, 2600.0, (("make", 0.9),), True)
QUIET = replace(BUSY, other_cores=0.02, peak_cores=0.3, programs=(), busy=False, stolen_cores=0.0)


def text_of(shown: RenderableType) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


@pytest.fixture
def comparison(make_run: Callable[..., Run]) -> Comparison:
    """Return a comparison in which other programs disturbed ``ours`` at 2/s."""
    runs = [
        make_run(
            name, rate, records=100, machine=(BUSY if (name, rate) == ("ours", 2.0) else QUIET).to_json()
        )
        for name in ("ours", "fastgen-fcfs")
        for rate in (1.0, 2.0)
    ]
    (found,) = compare(runs)
    return found


def test_an_account_survives_json() -> None:
    assert MachineAccount.of({"machine": BUSY.to_json()}) == BUSY
    assert MachineAccount.of({}) is None
    assert MachineAccount.of({"machine": {"seconds": 1.0}}) is None


def test_an_account_is_described_in_words() -> None:
    assert BUSY.describe() == (
        "other programs took 0.93 cores (make 0.90), 1.02 in their busiest second; other virtual machines "
        "took 0.05; programs waited for memory 4% of the time"
    )


def test_a_disturbed_run_is_marked_and_a_quiet_one_is_not(make_run: Callable[..., Run]) -> None:
    for account, expected in ((BUSY, True), (QUIET, False), (None, False)):
        run = make_run("ours", machine=None if account is None else account.to_json())
        shown = text_of(run_table(run.info, summary_of(run)))
        assert ("◆" in shown) == expected
        assert ("make 0.90" in shown) == expected


def test_tables_mark_the_point(comparison: Comparison) -> None:
    shown = text_of(comparison_tables(comparison, [], 120))
    _, heading = [line for line in shown.splitlines() if "ours ◆" in line]
    assert "fastgen-fcfs ◆" not in heading
    assert "◆ other programs took part of the machine" in shown
    assert "◆" in comparison_markdown(comparison, [])


def test_without_a_disturbed_run_there_is_no_mark(make_run: Callable[..., Run]) -> None:
    (comparison,) = compare([make_run("ours", machine=QUIET.to_json()), make_run("fastgen-fcfs")])
    assert "◆" not in comparison_markdown(comparison, [])
    assert "◆" not in text_of(comparison_tables(comparison, [], 120))
    assert not any(
        "other programs" in note for picture in pictures_of(comparison, []) for note in picture.notes
    )


def test_json_and_csv_have_the_mark(comparison: Comparison) -> None:
    data = comparison_json(comparison, [])
    assert {(p["label"], p["rate"]) for p in data["points"] if p["disturbed"]} == {("ours", 2.0)}
    assert [run["machine"]["busy"] for run in data["runs"] if run["label"] == "ours"] == [False, True]
    rows = {(row["label"], row["rate"]): row["disturbed"] for row in comparison_rows(comparison, [])}
    assert rows == {
        ("ours", 1.0): False,
        ("ours", 2.0): True,
        ("fastgen-fcfs", 1.0): False,
        ("fastgen-fcfs", 2.0): False,
    }


def test_every_picture_names_the_disturbed_points(comparison: Comparison) -> None:
    pictures = pictures_of(comparison, [])
    assert pictures
    for picture in pictures:
        assert picture.notes[-1] == "other programs used the machine: ours at 2 requests / s"


def test_the_list_of_runs_shows_the_mark(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run("ours", machine=BUSY.to_json())
    write_json(tmp_path / "run.json", dict(run.info) | {"version": 1, "summary": summary_of(run).to_dict()})
    assert DISTURBED in overview(tmp_path).marks
