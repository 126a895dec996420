"""bench/gpu_check.py, for real on models of no size; what only a GPU's run can show is in its tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gpu.report import Target

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
FIRST = "correctness,steps,swapping,loop"
SECTION_KEYS = {
    "name",
    "budget_seconds",
    "status",
    "sentence",
    "seconds",
    "rows",
    "notes",
    "details",
    "targets",
}


def gpu_check(
    *argv: object, path: str | None = None
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """And the JSON of its last line."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"PATH": f"{path}:{env['PATH']}"} if path else {}
    command = [sys.executable, "bench/gpu_check.py", "--device", "cpu", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=False)
    assert done.stdout.strip(), done.stderr
    return done, json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The JSON printed, the JSON written, the tables: of everything that needs no server."""
    out = tmp_path_factory.mktemp("gpu_check") / "it.json"
    done, printed = gpu_check("--only", FIRST, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return printed, json.loads(out.read_text()), done.stdout


def test_the_json_says_what_was_measured_on_what(whole: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    printed, written, _ = whole
    assert printed == written
    assert printed["version"] == 1
    assert printed["bench"] == "gpu_check"
    assert printed["device"]["type"] == "cpu"
    assert printed["date"].startswith("20")
    assert {"python", "torch", "triton", "transformers", "cuda", "vllm"} <= set(printed["versions"])
    assert "git_commit" in printed
    assert printed["wrong"] is False
    assert set(printed["sections"]) == set(FIRST.split(","))
    for name, section in printed["sections"].items():
        assert set(section) == SECTION_KEYS
        assert section["name"] == name
        assert section["status"] == "done", section
        assert section["rows"]


def test_every_operation_with_a_kernel_is_checked(whole: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    from gpu.kernels import own_operations

    from fgengine.ops.triton.ops import TritonOps

    rows = whole[0]["sections"]["correctness"]["rows"]
    assert all(row["right"] is True for row in rows)
    checked = {row["check"] for row in rows}
    assert own_operations(TritonOps) <= checked
    assert {"KV through copies", "logits", "tokens alone"} <= checked
    under = [row for row in rows if row["check"].startswith("tokens under")]
    assert {"fcfs", "mlfq", "sj-mlfq", "srpt"} == {row["check"].split()[2].strip(",") for row in under}
    assert any(" 0 blocks swapped out" not in row["found"] for row in under)


def test_steps_stand_beside_their_floors(whole: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    printed, _, tables = whole
    steps = printed["sections"]["steps"]
    assert {row["model"] for row in steps["rows"]} == {"opt-tiny", "llama-tiny"}
    assert {row["step"] for row in steps["rows"]} == {"decode", "prefill"}
    for row in steps["rows"]:
        assert row["seconds"] >= row["best_seconds"] > 0.0
        assert row["ratio"] == pytest.approx(row["seconds"] / row["floor_seconds"])
    for model in ("opt-tiny", "llama-tiny"):
        details = steps["details"][model]
        assert details["read_bytes_per_second"] > 1e8
        (judged,) = [name for name in details if name.startswith("decode")]
        assert details[judged]["busy_seconds"] > 0.0
        assert details[judged]["kernels"][0]["seconds"] > 0.0
    assert "(b) steps" in tables


def test_targets_are_listed_and_not_judged_on_a_cpu(
    whole: tuple[dict[str, Any], dict[str, Any], str],
) -> None:
    targets = whole[0]["targets"]
    assert len(targets) == 8  # of two models: a decode, a prefill, the slowdown, the loop
    assert all(target["met"] is None for target in targets)


def test_swapping_is_timed_each_way_and_both(whole: tuple[dict[str, Any], dict[str, Any], str]) -> None:
    rows = [row for row in whole[0]["sections"]["swapping"]["rows"] if row["model"] == "opt-tiny"]
    assert [row["what"] for row in rows[:3]] == ["offload", "upload", "offload and upload"]
    assert all(row["bytes_per_second"] > 0.0 for row in rows[:3])
    assert rows[3]["seconds"] > 0.0
    assert rows[4]["slowdown"] == pytest.approx(rows[4]["seconds"] / rows[3]["seconds"] - 1.0)
    assert rows[4]["bytes_per_second"] > 0.0


def test_parts_in_processes_of_their_own_find_the_same(tmp_path: Path) -> None:
    out = tmp_path / "it.json"
    done, printed = gpu_check("--only", "loop", "--isolate", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    loop = printed["sections"]["loop"]
    assert loop["status"] == "done"
    assert [(row["model"], row["overlap"]) for row in loop["rows"]] == [
        (model, overlap) for model in ("opt-tiny", "llama-tiny") for overlap in (False, True)
    ]
    assert all(row["step_seconds"] > 0.0 for row in loop["rows"])
    assert printed["device"]["type"] == "cpu"
    written = {path.name for path in (tmp_path / "it" / "parts").glob("*.json")}
    assert written == {"opt-tiny.1.json", "llama-tiny.1.json"}


def test_without_time_sections_are_left_out_with_a_sentence() -> None:
    done, printed = gpu_check("--only", "serving,loop", "--minutes", "0.1")
    serving = printed["sections"]["serving"]
    assert serving["status"] == "skipped"
    assert "s are left" in serving["sentence"]
    assert done.returncode == 0


@pytest.mark.parametrize("argv", [["--only", "kernels"], ["--minutes", "0"]])
def test_wrong_usage_is_told(argv: list[str]) -> None:
    command = [sys.executable, "bench/gpu_check.py", *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert argv[0] in done.stderr


def test_targets() -> None:
    assert Target("x", 1.2, 1.25).met
    assert Target("x", 1.3, 1.25).met is False
    assert Target("x", 0.5, 0.6, at_most=False).met is False
    assert Target("x", 1.3, 1.25, judged=False).met is None
