"""Tests of ``fgbench run`` as a user starts it: with its own server, and with a running server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fgbench.metrics.accounts import MemoryAccount
from fgbench.results.run import Run, find_runs, read_run

DONE, CLIENT_LIMIT = 0, 4  # both are accepted, because the machine may be busy with other tests


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Path:
    return tiny_model


def fgbench(verb: str, *argv: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fgbench", verb, *map(str, argv)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # more threads make such a small model slower
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=one_thread
    )


def server_options(model: Path) -> list[object]:
    options = ["--model", model, "--use-dummy-weights", "--device", "cpu", "--dtype", "float32"]
    return [*options, "--num-device-blocks", 60, "--swap-space", 0.01]


def synthetic(outputs: str) -> list[object]:
    return ["--dataset", "synthetic", "--input-len", "20-100", "--output-len", outputs]


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.05)


def processes_about(words: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(words) in line and " serve " in f"{line} ":
            found.append(process)
    return found


def only_run(results: Path) -> Run:
    (path,) = find_runs(results)
    return read_run(path)


@pytest.mark.parametrize("backend", ["fastgen-fcfs", "fastgen-srpt"])
def test_a_run_starts_its_server_loads_it_and_stops_it(backend: str, model: Path, tmp_path: Path) -> None:
    argv = ["--backend", backend, *server_options(model), *synthetic("5-100"), "--results", tmp_path]
    process = fgbench("run", *argv, "--rate", 40, "--num-prompts", 40, "--max-error-rate", 0)
    output, _ = process.communicate(timeout=100)
    assert process.returncode in (DONE, CLIENT_LIMIT), output
    run = only_run(tmp_path)
    assert run.complete
    assert len(run.records) == 40
    account = MemoryAccount.of(run.info)
    assert account is not None
    assert account.pressure_seconds >= 0.0
    assert 0.0 <= account.copy_wait_share < 1.0
    assert "device idle for copies" in " ".join(output.split())
    for record in run.records:
        assert record.ok
        assert record.output_tokens == record.asked_tokens
        assert record.server is not None
    assert run.info["backend"]["policy"] == backend.removeprefix("fastgen-")
    assert run.info["backend"]["settings"]["num_device_blocks"] == 60
    assert "ready" in (run.path / "server.log").read_text()
    assert processes_about(model) == []


def test_a_killed_run_ends_its_server_and_loses_no_request(model: Path, tmp_path: Path) -> None:
    argv = ["--backend", "fastgen-fcfs", *server_options(model), *synthetic("5-20"), "--results", tmp_path]
    process = fgbench("run", *argv, "--rate", 20, "--num-prompts", 2000)
    wait_for(lambda: any(f.read_bytes().count(b"\n") > 10 for f in tmp_path.glob("*/requests.jsonl")))
    assert processes_about(model)
    process.kill()
    process.communicate(timeout=10)
    wait_for(lambda: processes_about(model) == [], seconds=15)
    run = only_run(tmp_path)
    assert run.status == "incomplete"
    assert len(run.records) > 10


@pytest.fixture
def served(model: Path, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    from fgbench.backends.probe import wait_until_ready
    from fgbench.backends.started import free_port

    port = free_port()
    process = fgbench("serve", *server_options(model), "--policy", "fcfs", "--port", port)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, timeout=60, report=print, alive=lambda: process.poll() is None)
        yield url, process
    finally:
        process.kill()
        process.communicate()


def test_a_killed_client_leaks_no_block(served: tuple[str, subprocess.Popen[str]], tmp_path: Path) -> None:
    url, server = served

    def stats() -> dict[str, Any]:
        with urllib.request.urlopen(f"{url}/stats", timeout=10) as answer:
            return dict(json.load(answer))

    load = ["--url", url, *synthetic("100-500"), "--rate", "inf", "--num-prompts", 50, "--warmup", 0]
    client = fgbench("run", *load, "--results", tmp_path / "killed")
    wait_for(lambda: stats()["running"] > 0)
    busy = stats()
    assert busy["free_device_blocks"] < busy["num_device_blocks"]
    client.kill()
    client.communicate(timeout=10)
    wait_for(lambda: stats()["running"] == stats()["waiting"] == stats()["swapped"] == 0, seconds=15)
    idle = stats()
    assert idle["free_device_blocks"] == idle["num_device_blocks"]
    assert idle["free_host_blocks"] == idle["num_host_blocks"]

    again = fgbench(
        "run",
        "--url",
        url,
        *synthetic("5-20"),
        "--rate",
        40,
        "--num-prompts",
        30,
        "--results",
        tmp_path / "again",
    )
    output, _ = again.communicate(timeout=60)
    assert again.returncode in (DONE, CLIENT_LIMIT), output
    assert only_run(tmp_path / "again").info["summary"]["ok"] == 30

    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=10) == 130
