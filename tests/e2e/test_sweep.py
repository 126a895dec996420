"""Tests of ``fgbench sweep`` with real servers of a tiny model: killed, interrupted and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from fgbench.results.run import find_runs, read_run
from fgbench.sweeping.folder import find_sweeps, read_sweep

DONE, CLIENT_LIMIT = 0, 4  # both are accepted, because the machine may be busy with other tests


def sweep(*argv: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fgbench", "sweep", *map(str, argv)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # more threads make such a small model slower
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=one_thread
    )


def options(model: Path, results: Path) -> list[object]:
    server = ["--model", model, "--use-dummy-weights", "--device", "cpu", "--dtype", "float32"]
    load = ["--dataset", "synthetic", "--input-len", "20-100", "--output-len", "5-60", "--num-prompts", 30]
    memory = ["--num-device-blocks", 60, "--swap-space", 0.01]
    backend = ["--backend", "fastgen-fcfs --offloading recompute", "--rates", "20,30,60"]  # needs no profile
    return [
        *server,
        *memory,
        *load,
        *backend,
        "--max-error-rate",
        0,
        "--results",
        results,
    ]


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.02)


def servers_of(model: Path) -> list[psutil.Process]:
    lines = [
        (process, " ".join(process.info["cmdline"] or ())) for process in psutil.process_iter(["cmdline"])
    ]
    return [process for process, line in lines if str(model) in line and " serve " in line]


def finished_requests(root: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in root.glob("*/*/requests.jsonl"))


def test_a_killed_and_interrupted_sweep_is_resumed_until_every_point_is_done(
    tiny_model: Path, tmp_path: Path
) -> None:
    killed = sweep(*options(tiny_model, tmp_path))
    wait_for(lambda: finished_requests(tmp_path) > 35)  # in the second point
    killed.kill()
    killed.communicate(timeout=10)
    wait_for(lambda: servers_of(tiny_model) == [], seconds=15)
    (folder,) = find_sweeps(tmp_path)
    before = finished_requests(tmp_path)
    assert before > 35

    interrupted = sweep("--resume", folder)
    wait_for(lambda: finished_requests(tmp_path) > before + 35)  # in the third, or still in the second
    interrupted.send_signal(signal.SIGINT)
    output, _ = interrupted.communicate(timeout=30)
    assert interrupted.returncode == 130, output
    assert f"fgbench sweep --resume {folder}" in output
    assert servers_of(tiny_model) == []
    info = read_sweep(folder)
    assert info["status"] == "interrupted"
    assert info["points"][0]["status"] == "complete"
    assert "interrupted" in [point["status"] for point in info["points"]]

    last = sweep("--resume", folder)
    output, _ = last.communicate(timeout=60)
    assert last.returncode in (DONE, CLIENT_LIMIT), output
    assert servers_of(tiny_model) == []
    points = read_sweep(folder)["points"]
    runs = [read_run(path) for path in find_runs(folder)]
    for point in points:
        (complete,) = [r for r in runs if r.complete and r.info["point"] == point["fingerprint"]]
        assert complete.path.name == point["run"]
        assert len(complete.records) == complete.info["summary"]["ok"] == 30
    assert sorted(run.status for run in runs if not run.complete) == ["incomplete", "interrupted"]
    assert sum(len(run.records) for run in runs) == finished_requests(tmp_path)
    modes = {run.info["backend"]["settings"]["offloading"] for run in runs}
    assert modes == {"recompute"}
    logs = {path.name for path in folder.glob("server_*.log")}
    assert logs == {"server_fastgen-fcfs-offloading-recompute.log"}
