"""A sweep that is killed and resumed several times measures every point exactly once."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from fgbench.results.run import REQUESTS_FILE, Run, find_runs, read_run
from fgbench.sweeping.folder import find_sweeps, read_sweep

PROFILE = Path(__file__).parents[2] / "data" / "profile.json"
KILLER = Path(__file__).with_name("killer.py")
PROMPTS = 25
KILLS = 12
SEEDS = 40 if os.environ.get("FGBENCH_NIGHTLY") else 1
BASE = [
    *("--profile", str(PROFILE), "--backend", "simulated", "--backend", "simulated-fcfs"),
    *("--num-prompts", str(PROMPTS), "--max-batch-size", "8", "--dataset", "synthetic"),
    *("--input-len", "20-200", "--output-len", "10-80"),
]
GRID = ["--rates", "1,2,4", "--seeds", "2"]
SEARCH = ["--find-rate", "--slo", "normalized_latency<0.03", "--rates", "2"]


def runs_by_point(folder: Path) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = defaultdict(list)
    for path in find_runs(folder):
        run = read_run(path)
        runs[run.info["point"]].append(run)
    return runs


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("argv", [GRID, SEARCH], ids=["grid", "search"])
@pytest.mark.slow
def test_every_point_is_complete_once_and_no_finished_request_is_lost(
    tmp_path: Path, argv: list[str], seed: int
) -> None:
    rng = random.Random(seed)
    shares = ",".join(f"{rng.uniform(0.05, 0.35):.3f}" for _ in range(KILLS))
    command = [sys.executable, str(KILLER), shares, str(tmp_path / "free"), str(tmp_path / "killed")]
    done = subprocess.run([*command, *BASE, *argv], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout)
    assert codes[-1] == 0, done.stderr
    assert len(codes) > 2, "too few kills hit the sweep"
    (free,), (killed,) = (find_sweeps(tmp_path / name) for name in ("free", "killed"))
    info, expected_info = read_sweep(killed), read_sweep(free)
    assert info["status"] == "complete"
    points = info["points"]
    assert [entry["status"] for entry in points] == ["complete"] * len(points)
    assert [entry["fingerprint"] for entry in points] == [p["fingerprint"] for p in expected_info["points"]]
    assert info.get("searches") == expected_info.get("searches")
    expected, runs = runs_by_point(free), runs_by_point(killed)
    assert set(runs) == set(expected) == {entry["fingerprint"] for entry in points}
    for point, of_point in runs.items():
        (complete,) = [run for run in of_point if run.complete]
        assert complete.records == expected[point][0].records
        assert len(complete.records) == PROMPTS
        for run in of_point:
            assert run.status in ("complete", "incomplete")
            requests = run.path / REQUESTS_FILE
            assert len(run.records) == (requests.read_bytes().count(b"\n") if requests.exists() else 0)
