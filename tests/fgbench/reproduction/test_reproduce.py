"""Tests of ``fgbench reproduce``: simulated at a tenth of the size, its tables, files and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import fgbench, words

from fgbench.results.run import find_runs, read_info
from fgbench.sweeping.folder import find_sweeps

TENTH = ["--num-prompts", "40", "--seeds", "1"]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without downloaded datasets."""
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.slow
def test_a_figure_is_simulated_and_compared_with_the_published_one(tmp_path: Path) -> None:
    done = fgbench("reproduce", "fig18", *TENTH, "--results", tmp_path)
    assert done.exit_code == 0, done.output
    text = words(done.output)
    assert "fastgen at 0.1 s/token" in text
    assert "fastgen / vllm-chunked" in text
    assert "vllm-stand-in: our engine with fcfs and recomputed KV, instead of vLLM." in text
    assert "Left out: chunked-alpaca" in text
    assert "ƒ an analytic device (a100-40gb): step times were computed from published figures" in text
    folder = tmp_path / "reproduction" / "simulated"
    assert (folder / "pictures" / "fig18-sharegpt.png").is_file()
    found = json.loads((folder / "fig18.json").read_text())["deviations"]
    by_name = {one["figure"]: one for one in found}
    assert by_name["fastgen / vllm"]["paper"][0] is not None
    assert {one["panel"] for one in found} == {"fig18-sharegpt"}

    runs = {path: path.stat().st_mtime_ns for path in find_runs(folder)}
    again = fgbench("reproduce", "fig18", *TENTH, "--results", tmp_path)
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in find_runs(folder)} == runs, "measured again"
    assert words(again.output).count("fastgen / vllm-chunked") == 1
    assert len(list(find_sweeps(folder))) == 1


@pytest.mark.slow
def test_another_device_is_simulated_and_points_are_measured_again_on_request(tmp_path: Path) -> None:
    small = ["fig17", "--num-prompts", "4", "--seeds", "1", "--device-spec", "h200", "--results", tmp_path]
    assert fgbench("reproduce", *small).exit_code == 0
    folder = tmp_path / "reproduction" / "simulated"
    first = set(find_runs(folder))
    assert {read_info(run)["backend"]["settings"]["device_spec"] for run in first} == {"h200"}
    assert fgbench("reproduce", *small, "--again").exit_code == 0
    assert len(set(find_runs(folder)) - first) == len(first)
    assert len(list(find_sweeps(folder))) == 2


def test_a_dry_run_lists_the_experiments_and_measures_nothing(tmp_path: Path) -> None:
    done = fgbench("reproduce", "fig11", "fig12", "--dry-run", "--seeds", "2", "--results", tmp_path)
    assert done.exit_code == 0, done.output
    assert "sharegpt: 140 points of 400 requests" in words(done.output)
    assert "simulated/sharegpt.toml" in done.output.replace("\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fig16"], "there is no figure fig16: use fig11, fig12, fig13, fig14, fig15, fig17, fig18, or all"),
        (["fig11", "--on", "laptop", "--device-spec", "h200"], "--device-spec is for --on simulated"),
        (["fig17", "--device-spec", "b900"], "b900"),
        (["fig15", "--on", "laptop"], "there is no experiment llama-sharegpt on laptop"),
    ],
)
def test_a_wrong_request_is_refused_with_the_reason(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = fgbench("reproduce", *arguments, "--results", tmp_path)
    assert done.exit_code != 0
    assert message in words(done.output)
