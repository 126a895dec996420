"""bench/gpu.py on a CPU with tiny models. The figures mean nothing, but the script runs as on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import device_time
import gpu
import pytest
import torch
from device_time import Span

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"opt-tiny", "llama-tiny"}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Return the JSON and the printed text of the script, run as a user runs it."""
    out = tmp_path_factory.mktemp("gpu") / "it.json"
    done = subprocess.run(
        [sys.executable, "bench/gpu.py", "--device", "cpu", "--out", out],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text()), done.stdout


@pytest.mark.slow
def test_every_section_has_rows_of_every_model(measured: tuple[dict[str, Any], str]) -> None:
    data, printed = measured
    assert data["version"] == 2
    assert data["device"]["type"] == "cpu"
    assert data["failures"] == []
    assert set(data["models"]) == MODELS
    assert all(about["read_bytes_per_second"] > 1e8 for about in data["models"].values())
    assert set(data["sections"]) == {"steps", "swapping", "loop", "kernels"}
    for section, rows in data["sections"].items():
        assert {row["model"] for row in rows} == MODELS
        assert f"opt-tiny: {section}" in printed


def test_steps_are_compared_with_their_floors(measured: tuple[dict[str, Any], str]) -> None:
    rows = measured[0]["sections"]["steps"]
    assert {row["step"] for row in rows} == {"decode", "prefill"}
    for row in rows:
        assert row["seconds"] >= row["best_seconds"] > 0.0
        assert row["ratio"] == pytest.approx(row["seconds"] / row["floor_seconds"])
    kernels = measured[0]["sections"]["kernels"]
    assert all(row["seconds"] > 0.0 and row["busy_seconds"] > 0.0 for row in kernels)
    assert {(row["step"], row["requests"], row["context"]) for row in kernels} == {
        ("decode", 4, 16),
        ("prefill", 1, 48),
    }


def test_copies_are_timed_in_each_direction_and_in_both(measured: tuple[dict[str, Any], str]) -> None:
    rows = [row for row in measured[0]["sections"]["swapping"] if row["model"] == "opt-tiny"]
    assert [row["what"] for row in rows[:3]] == ["offload", "upload", "offload and upload"]
    assert all(row["bytes_per_second"] > 0.0 for row in rows[:3])
    alone, with_copies = rows[3:]
    assert with_copies["slowdown"] == pytest.approx(with_copies["seconds"] / alone["seconds"] - 1.0)
    assert with_copies["bytes_per_second"] > 0.0
    assert len(alone["samples"]) == len(with_copies["samples"]) == 6


def test_the_loop_is_timed_with_the_settings_of_the_server(measured: tuple[dict[str, Any], str]) -> None:
    for row in measured[0]["sections"]["loop"]:
        assert row["overlap"] is False
        assert row["step_seconds"] > 0.0
        assert 0.0 <= row["outside"] < 1.0
        assert len(row["samples"]) == 8


def test_targets_are_listed_and_not_judged_on_a_cpu(measured: tuple[dict[str, Any], str]) -> None:
    targets = measured[0]["targets"]
    assert len(targets) == 8  # of two models: a decode, a prefill, the slowdown, the loop
    assert all(target["met"] is None and isinstance(target["value"], float) for target in targets)
    assert measured[1].count("not judged on a CPU") == 8


def run(out: Path, *argv: str) -> tuple[int, dict[str, Any]]:
    """Run the script on the CPU; return its exit code and the JSON in ``out``."""
    code = gpu.main(["--device", "cpu", "--out", str(out), *argv])
    return code, json.loads(out.read_text())


@pytest.mark.slow
def test_a_failed_section_is_recorded_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(runner: object, model: str, scale: object, report: gpu.Report) -> None:
        report.row("swapping", model=model, what="first half")
        raise RuntimeError("no copies today")

    monkeypatch.setitem(gpu.SECTIONS, "swapping", fail)
    models = ("--model", "no-such-model", "--model", "opt-tiny")
    code, data = run(tmp_path / "it.json", *models, "--only", "swapping,loop")
    assert code == 1
    missing, swapping = data["failures"]
    assert (missing["model"], missing["section"]) == ("no-such-model", "loading")
    assert swapping == {"model": "opt-tiny", "section": "swapping", "error": "RuntimeError: no copies today"}
    assert data["sections"]["swapping"] == [{"model": "opt-tiny", "what": "first half"}]
    assert data["sections"]["loop"][0]["step_seconds"] > 0.0
    printed = capsys.readouterr().out
    assert "first half" in printed
    assert "no copies today" in printed


def test_rows_measured_before_ctrl_c_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(gpu.SECTIONS, "loop", interrupt)
    code, data = run(tmp_path / "it.json", "--model", "opt-tiny", "--only", "swapping,loop")
    assert code == 130
    assert len(data["sections"]["swapping"]) == 5
    assert "loop" not in data["sections"]


def test_wrong_usage_gives_an_error_with_the_wrong_word(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--only", "kernles"])
    assert ended.value.code == 2
    assert "kernles" in capsys.readouterr().err


def test_a_target_is_an_upper_or_a_lower_limit(tmp_path: Path) -> None:
    report = gpu.Report(torch.device("cpu"), None)
    report.data["device"]["type"] = "cuda"
    report.target("x", 1.2, 1.25)
    report.target("x", 1.3, 1.25)
    report.target("x", 0.5, 0.6, at_most=False)
    report.target("x", 0.7, 0.6, at_most=False)
    assert [target["met"] for target in report.data["targets"]] == [True, False, False, True]


@pytest.mark.slow
def test_fgbench_accepts_the_sweep_of_gpu_toml() -> None:
    sweep = [sys.executable, "-m", "fgbench", "sweep", "--config", "bench/gpu.toml", "--dry-run"]
    done = subprocess.run(sweep, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 points" in done.stdout
    assert done.stdout.count("fastgen-fcfs") == 3
    assert done.stdout.count("fastgen --offloading proactive") == 3


@pytest.mark.parametrize(
    ("blocks", "requests", "fits"), [(100, 3, 3), (100, 4, 3), (512, 20, 16), (512, 16, 16), (31, 1, 0)]
)
def test_a_batch_that_does_not_fit_the_pool_is_reduced(blocks: int, requests: int, fits: int) -> None:
    runner = SimpleNamespace(num_device_blocks=blocks, block_size=16)
    assert gpu.fitting(runner, requests, context=500) == fits


def test_the_time_of_overlapping_kernels_is_counted_once() -> None:
    spans = [Span("a", 0, 10), Span("b", 5, 15), Span("a", 20, 30), Span("c", 21, 22)]
    assert device_time.busy_seconds(spans) == pytest.approx(25e-6)
    first, *others = device_time.kernels_of(spans, times=2)
    assert (first["kernel"], first["seconds"], first["calls"]) == ("a", 10e-6, 1.0)
    assert [one["kernel"] for one in others] == ["b", "c"]
