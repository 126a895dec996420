"""Tests of the serving sections of bench/gpu_check.py. The command vllm is replaced by our own server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VLLM = """#!{python}
import sys
argv = sys.argv[1:]
assert argv[0] == "serve" and "--enforce-eager" not in argv
folder, rest = argv[1], argv[2:]
assert rest[rest.index("--load-format") + 1] == "dummy"
port = rest[rest.index("--port") + 1]
from fgbench.cli.main import app
server = ["--use-dummy-weights", "--device", "cpu", "--policy", "fcfs"]
app(["serve", "--model", folder, "--port", port, *server])
"""


@pytest.fixture
def vllm(tmp_path: Path) -> Path:
    """A folder with a fake command ``vllm``."""
    command = tmp_path / "bin" / "vllm"
    command.parent.mkdir()
    command.write_text(VLLM.format(python=sys.executable))
    command.chmod(0o755)
    return command.parent


def test_two_policies_run_at_three_rates_and_vllm_at_the_middle_rate(tmp_path: Path, vllm: Path) -> None:
    out = tmp_path / "it.json"
    done = subprocess.run(
        [sys.executable, "bench/gpu_check.py", "--device", "cpu", "--only", "serving,vllm", "--out", out],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": f"{vllm}:{os.environ['PATH']}"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())["sections"]
    rows = found["serving"]["rows"]
    assert sorted((row["backend"], row["rate"]) for row in rows) == [
        (name, rate) for name in ("fastgen", "fastgen-fcfs") for rate in (10.0, 20.0, 30.0)
    ]
    assert {row["settings"]["offloading"] for row in rows if row["backend"] == "fastgen"} == {"proactive"}
    assert all(row["ok"] == row["requests"] > 0 for row in rows)
    assert all(row["normalized_latency"]["p95"] > 0.0 for row in rows)
    assert found["serving"]["details"]["profile"]["cost"]["step"] > 0.0
    loads = [(row["backend"], row["load"], row["ok"]) for row in found["vllm"]["rows"]]
    assert loads[0] == ("vllm", "16 x 16 at once", 16)
    middle = {backend: ok for backend, load, ok in loads[1:] if load == "20 requests/s"}
    assert set(middle) == {"vllm", "fastgen", "fastgen-fcfs"}
    assert len(set(middle.values())) == 1  # the same requests
    assert found["vllm"]["rows"][0]["itl"]["mean"] > 0.0
