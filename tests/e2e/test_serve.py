"""Tests of ``fgbench serve`` as a user starts it, with a tiny model and random weights."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest


class Serving:
    """A running server, and requests to it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        with contextlib.closing(self.request(method, path, body)) as connection:
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def request(self, method: str, path: str, body: Any = None) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, json.dumps(body) if body is not None else None)
        return connection

    def complete(self, **body: Any) -> dict[str, Any]:
        status, answer = self.ask("POST", "/v1/completions", body)
        assert status == 200, answer
        return dict(answer)

    def stats(self) -> dict[str, Any]:
        return dict(self.ask("GET", "/stats")[1])

    def wait_until_ready(self) -> None:
        while True:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError):
                status, health = self.ask("GET", "/health")
                if status == 200:
                    return
                assert health["status"] == "starting", health
            time.sleep(0.1)


@pytest.fixture(scope="module")
def serving(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    log = tmp_path_factory.mktemp("serving") / "server.log"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    argv = ["--model", str(tiny_model), "--use-dummy-weights", "--policy", "fcfs", "--port", str(port)]
    argv += ["--num-device-blocks", "64", "--swap-space", "0.001", "--device", "cpu", "--dtype", "float32"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "fgbench", "serve", *argv], stdout=out, stderr=subprocess.STDOUT
        )
    serving = Serving(process, port, log)
    try:
        serving.wait_until_ready()
        yield serving
    finally:
        process.kill()
        process.wait()


def test_models(serving: Serving) -> None:
    _, answer = serving.ask("GET", "/v1/models")
    [model] = answer["data"]
    # 64 blocks of 16 tokens, and the last token, which needs no KV.
    assert (model["max_model_len"], model["vocab_size"]) == (1025, 512)


def test_greedy_output_is_the_same_with_and_without_streaming(serving: Serving) -> None:
    body = {"prompt": "Hello, world", "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    complete = serving.complete(**body)
    assert complete["usage"]["completion_tokens"] == 20
    with contextlib.closing(serving.request("POST", "/v1/completions", {**body, "stream": True})) as stream:
        events = stream.getresponse().read().decode().split("\n\n")[:-1]
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert len(chunks) == 20
    assert "".join(c["choices"][0]["text"] for c in chunks) == complete["choices"][0]["text"]
    assert chunks[-1]["fgengine"]["decode"] > 0


def test_a_request_that_can_never_fit_is_refused(serving: Serving) -> None:
    status, answer = serving.ask("POST", "/v1/completions", {"prompt": [5] * 20, "max_tokens": 5000})
    assert status == 400
    assert "5020" in answer["error"]["message"] or "1025" in answer["error"]["message"]


def test_clients_that_disconnect_leak_no_blocks(serving: Serving) -> None:
    body = {"prompt": [5] * 100, "max_tokens": 900, "ignore_eos": True, "stream": True}
    streams = [serving.request("POST", "/v1/completions", body) for _ in range(4)]
    responses = [stream.getresponse() for stream in streams]
    assert responses[0].readline().startswith(b"data: ")
    assert serving.stats()["free_device_blocks"] < 64
    for response, stream in zip(responses, streams, strict=True):
        response.close()
        stream.close()
    deadline = time.monotonic() + 20
    while (stats := serving.stats())["requests_in_flight"] or stats["free_device_blocks"] != 64:
        assert time.monotonic() < deadline, stats
        time.sleep(0.05)
    assert stats["free_host_blocks"] == stats["num_host_blocks"]
    assert stats["requests_aborted"] == 4
    assert serving.complete(prompt=[5] * 10, max_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3


def test_sigint_during_a_request_ends_the_server(serving: Serving) -> None:
    """This test must be the last one, because it ends the server."""
    children = psutil.Process(serving.process.pid).children(recursive=True)
    assert children
    body = {"prompt": [5] * 10, "max_tokens": 900, "ignore_eos": True, "stream": True}
    with contextlib.closing(serving.request("POST", "/v1/completions", body)) as stream:
        response = stream.getresponse()
        assert response.readline().startswith(b"data: ")
        serving.process.send_signal(signal.SIGINT)
        assert b"shutting down" in response.read()
    assert serving.process.wait(timeout=5) == 130
    assert psutil.wait_procs(children, timeout=1)[1] == []
    assert "Traceback" not in serving.log.read_text()
