"""A log that cannot be written does not end the server."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from fgengine.child import python_module

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")


@pytest.mark.slow
def test_a_server_runs_while_its_log_cannot_be_written(tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ["--model", str(tiny_model), "--use-dummy-weights", "--policy", "fcfs", "--device", "cpu"]
    with open("/dev/full", "wb") as full:
        server = subprocess.Popen(
            python_module("fgbench", "serve", "--port", str(port), *options), stdout=full, stderr=full
        )
    try:
        while _ask(port, "GET", "/health") != 200:
            assert server.poll() is None
            time.sleep(0.1)
        for body in ({"prompt": [5], "max_tokens": 2}, {"prompt": [5], "max_tokens": 2, "unknown": 1}):
            assert _ask(port, "POST", "/v1/completions", body) == 200
        assert _ask(port, "POST", "/v1/completions", {"temprature": 1}) == 400
        server.terminate()
        assert server.wait(20) in (0, 120)  # 120: Python could not flush its output
    finally:
        server.kill()
        server.wait()


def _ask(port: int, method: str, path: str, body: object = None) -> int:
    with suppress(OSError), closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json"})
        return connection.getresponse().status
    return 0
