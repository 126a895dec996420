"""Runs that a prefix cache helped are marked in every format; what else is not equal is in the notes."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from fgbench.exit_status import ExitStatus
from fgbench.metrics.conditions import CacheAccount, Conditions
from fgbench.report.compare_table import comparison_tables
from fgbench.report.comparison import Comparison, compare
from fgbench.report.comparison_data import comparison_json, comparison_rows
from fgbench.report.comparison_markdown import comparison_markdown
from fgbench.report.marks import CACHED
from fgbench.report.overview import overview
from fgbench.report.pictures.contents import pictures_of
from fgbench.report.run_tables import run_table
from fgbench.report.unequal import unequal
from fgbench.results.files import write_json
from fgbench.results.frames import run_row
from fgbench.results.run import Run, summary_of
from fgbench.sweeping.plan import SweepPoint
from fgbench.sweeping.runner import Result
from fgbench.sweeping.sweep_tables import results_table

HELPED = CacheAccount(False, "POST /reset_prefix_cache: 404", "metrics", 900.0, 1000.0, 0.9, 0.0, True)
COLD = replace(HELPED, reset=True, reset_answer="POST /reset_prefix_cache: 200", hits=0.0, hit_share=0.0)
COLD = replace(COLD, helped=False)
SAME = Conditions(0, 0, 0, 32, 32, (0, 1))


def text_of(shown: RenderableType) -> str:
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def with_info(run: Run, cache: CacheAccount | None, conditions: Conditions | None = SAME) -> Run:
    found = {
        "prefix_cache": None if cache is None else cache.to_json(),
        "conditions": None if conditions is None else conditions.to_json(),
    }
    return replace(run, info=run.info | {key: value for key, value in found.items() if value is not None})


@pytest.fixture
def comparison(make_run: Callable[..., Run]) -> Comparison:
    """Return a comparison in which a prefix cache helped ``vllm`` at 2/s."""
    runs = [
        with_info(
            make_run(name, rate, records=100), None if name != "vllm" else HELPED if rate == 2.0 else COLD
        )
        for name in ("vllm", "fastgen-fcfs")
        for rate in (1.0, 2.0)
    ]
    (found,) = compare(runs)
    return found


def test_a_helped_run_is_marked_and_a_cold_one_is_not(make_run: Callable[..., Run]) -> None:
    for account, expected in ((HELPED, True), (COLD, False), (None, False)):
        run = with_info(make_run("vllm"), account)
        shown = text_of(run_table(run.info, summary_of(run)))
        assert ("◐" in shown) == expected
        assert ("90.0% of the prompt tokens found; not reset before the load" in shown) == expected


def test_tables_mark_the_point(comparison: Comparison) -> None:
    shown = text_of(comparison_tables(comparison, [], 120))
    _headline, heading = [line for line in shown.splitlines() if "vllm ◐" in line]
    assert heading.split() == ["vllm", "◐", "fastgen-fcfs"]
    assert "fastgen-fcfs ◐" not in shown
    assert "◐ the server found prompts of an earlier load" in shown
    assert "vllm: its prefix cache could not be reset (POST /reset_prefix_cache: 404)" in shown
    assert "◐" in comparison_markdown(comparison, [])


def test_json_and_csv_have_the_mark(comparison: Comparison) -> None:
    data = comparison_json(comparison, [])
    assert {(p["label"], p["rate"]) for p in data["points"] if p["cached"]} == {("vllm", 2.0)}
    shares = [run["prefix_cache"]["hit_share"] for run in data["runs"] if run["label"] == "vllm"]
    assert shares == [0.0, 0.9]
    assert any(note.startswith("◐") for note in data["notes"])
    rows = {(row["label"], row["rate"]): row["cached"] for row in comparison_rows(comparison, [])}
    assert {key for key, cached in rows.items() if cached} == {("vllm", 2.0)}


def test_every_picture_names_the_helped_points(comparison: Comparison) -> None:
    pictures = pictures_of(comparison, [])
    assert pictures
    for picture in pictures:
        assert picture.notes[-1] == "prompts were in a prefix cache: vllm at 2 requests / s"


def test_the_list_of_runs_and_sql_have_the_mark(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = with_info(make_run("vllm"), HELPED)
    info = dict(run.info) | {"version": 1, "summary": summary_of(run).to_dict()}
    write_json(tmp_path / "run.json", info)
    shown = overview(tmp_path)
    assert CACHED in shown.marks
    assert "prompts were in a prefix cache" in shown.to_json()["marks"]
    row = run_row(tmp_path, info)
    assert (row["cached"], row["cache_hit_share"]) == (True, 0.9)


def test_the_table_of_a_sweep_marks_the_point_and_has_the_notes(make_run: Callable[..., Run]) -> None:
    def result(name: str, cache: CacheAccount | None, cores: tuple[int, ...]) -> Result:
        run = with_info(make_run(name), cache, replace(SAME, cores=cores))
        return Result(SweepPoint(name, 2.0, 0, "f"), ExitStatus(0), summary_of(run), None, info=run.info)

    shown = text_of(results_table([result("vllm", HELPED, (0,)), result("fastgen", None, (0, 1))]))
    assert "2 △ ◐" in shown
    assert "◐ the server found prompts" in shown
    assert "The servers may use different cores: vllm 0, fastgen 0-1." in shown
    assert "◐" not in text_of(results_table([result("vllm", COLD, (0, 1)), result("fastgen", None, (0, 1))]))


def test_what_a_started_server_does_differently_is_in_the_notes(make_run: Callable[..., Run]) -> None:
    def info(name: str, **server: Any) -> dict[str, Any]:
        return {**with_info(make_run(name), None).info, "server": server}

    forced = "vLLM 0.32.0 has chunked prefill on, although chunked prefill off was asked for"
    alone = {"compute_cores": "0"}
    found = unequal(
        {
            "vllm": [info("vllm", notes=[forced], in_effect=alone)] * 2,
            "fastgen": [info("fastgen", threads=2)],
        }
    )
    assert [note.text for note in found] == [
        f"vllm: {forced}.",
        "The servers may use different cores: vllm 0, fastgen 0-1.",
    ]
    assert unequal({"vllm": [info("vllm")], "fastgen": [info("fastgen", in_effect={})]}) == []


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"texts": 4}, "vllm: text was sent instead of token ids"),
        ({"without_usage": 4}, "vllm: its answers hold no usage"),
        ({"miscounted": 4, "counted_tokens": 33}, "vllm: it counted 66 prompt tokens where 64 were sent"),
        ({"cores": (0,)}, "different cores: vllm 0, fastgen 0-1"),
    ],
)
def test_what_could_not_be_made_equal_is_a_note(change: dict[str, Any], note: str) -> None:
    same: dict[str, Any] = {"conditions": SAME.to_json()}
    other: dict[str, Any] = {"conditions": replace(SAME, **change).to_json()}
    (found,) = unequal({"vllm": [other, other], "fastgen": [same]})
    assert note in found.text
    assert unequal({"vllm": [same, same], "fastgen": [same, {}]}) == []


def test_a_note_on_all_backends_is_written_once() -> None:
    texts: dict[str, Any] = {"conditions": replace(SAME, texts=1).to_json()}
    (note,) = unequal({"vllm": [texts], "fastgen": [texts]})
    assert note.text.startswith("all backends: text was sent")


def test_a_cache_of_which_nothing_is_known_warns_only_for_texts() -> None:
    unknown = replace(COLD, reset=False, reset_answer="", counted_by=None, hit_share=None, looked_up=0.0)
    for texts, warns in ((0, False), (8, True)):
        info = {"prefix_cache": unknown.to_json(), "conditions": replace(SAME, texts=texts).to_json()}
        first = unequal({"openai": [info]})[0]
        assert "it was not possible to reset its prefix cache, if it has one" in first.text
        assert first.warns is warns
    off = replace(unknown, counted_by="metrics", hit_share=0.0)
    assert unequal({"vllm": [{"prefix_cache": off.to_json()}]}) == []


@pytest.mark.parametrize(("counted", "warns"), [(12_000, False), (6_000, True)])
def test_a_chat_template_adds_tokens_and_removes_none(
    make_run: Callable[..., Run], counted: int, warns: bool
) -> None:
    run = make_run("vllm")
    run.info["backend"]["endpoint"] = "chat"
    run.info["conditions"] = Conditions(0, 0, 4, 10_000, counted, None).to_json()
    note = next(
        note for note in unequal({"vllm": [run.info]}) if f"{counted:,}" in note.text or "chat" in note.text
    )
    assert note.warns is warns
