"""Tests of servers of a device that is not here, as a user starts and measures them."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fgbench.cli.main import app
from fgbench.metrics.accounts import analytic_device
from fgbench.results.run import Run, find_runs, read_run
from fgengine.analytic import analytic_profile
from fgengine.devices import GIB, DeviceSpec
from fgengine.efficiency import Efficiency
from fgengine.model.catalog import shape_of

FAST = DeviceSpec("fast-card", 8 * GIB, 1e12, 1e14, None, 1e11, "the tests")
STEP_SECONDS = 0.004
LOAD = ["--dataset", "synthetic", "--input-len", "10", "--output-len", "20", "--num-prompts", "8"]


@pytest.fixture(scope="module")
def device(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of an analytic profile whose steps take little more than ``STEP_SECONDS``."""
    path = tmp_path_factory.mktemp("device") / "fast-card.json"
    efficiency = Efficiency().with_step_overhead(STEP_SECONDS)
    model = str(tiny_model)
    analytic_profile(model, shape_of(model), FAST, "bfloat16", efficiency).save(path)
    return path


@pytest.fixture
def port(tiny_model: Path, device: Path) -> Iterator[int]:
    """Serve the device in another process, without torch; yield its port."""
    without_torch = "import sys; sys.modules['torch'] = None; from fgbench.__main__ import main; main()"
    argv = ["serve", "--model", str(tiny_model), "--device-spec", str(device), "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-c", without_torch, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"ready: http://127.0.0.1:(\d+)", line):
                break
        else:
            pytest.fail("".join(lines))
        assert "an analytic device, fast-card: step times are computed" in "".join(lines)
        yield int(found[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


def complete(port: int, **body: Any) -> list[dict[str, Any]]:
    """Return the chunks of a streamed completion."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}))
    response = connection.getresponse()
    text = response.read().decode()
    assert response.status == 200, text
    connection.close()
    events = text.split("\n\n")[:-1]
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


@pytest.mark.slow
def test_a_device_that_is_not_here_is_served_in_real_time_and_measured_by_url(
    port: int, tmp_path: Path
) -> None:
    chunks = complete(port, prompt="Hello", max_tokens=50)
    assert [chunk["choices"][0]["text"] for chunk in chunks][:2] == ["<300>", "<301>"]
    assert len(chunks) == 50
    # 49 decode steps of 4 ms: never faster, however slow this machine is. The first one runs already while
    # the first token, with which the phase begins, is processed.
    assert chunks[-1]["fgengine"]["decode"] >= 48 * STEP_SECONDS
    argv = [*LOAD, "--rate", "20", "--url", f"http://127.0.0.1:{port}", "--results", str(tmp_path)]
    done = CliRunner().invoke(app, ["run", *argv], terminal_width=200)
    assert done.exit_code == 0, done.output
    assert "an analytic device (fast-card)" in " ".join(done.output.split())
    run = only_run(tmp_path)
    assert analytic_device(run.info) == "fast-card"
    assert run.info["summary"]["tpot"]["mean"] >= 0.95 * STEP_SECONDS


@pytest.mark.slow
def test_a_started_server_of_a_device_needs_no_weights_and_its_run_is_marked(
    tiny_model: Path, device: Path, tmp_path: Path
) -> None:
    argv = ["--model", str(tiny_model), "--device-spec", str(device), *LOAD, "--rate", "20"]
    done = CliRunner().invoke(app, ["run", *argv, "--results", str(tmp_path)], terminal_width=200)
    assert done.exit_code == 0, done.output
    run = only_run(tmp_path)
    assert analytic_device(run.info) == "fast-card"
    assert all(record.ok and record.output_tokens == 20 for record in run.records)
    replayed = CliRunner().invoke(app, ["simulate", "--like", str(run.path)], terminal_width=200)
    assert replayed.exit_code == 0, replayed.output
    assert "step times of fast-card" in replayed.output


def only_run(root: Path) -> Run:
    (run,) = map(read_run, find_runs(root))
    return run
