"""Tests of servers that a command line starts."""

import json
import math
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from fgbench.backends.backend import BackendError
from fgbench.backends.command import Command
from fgbench.backends.probe import wait_until_ready
from fgbench.benchmark import execute_run
from fgbench.spec.load import Load
from fgbench.workload.datasets import Synthetic
from fgbench.workload.lengths import Between

DATASET = Synthetic(Between(4, 4), Between(3, 3))
SERVER = str(Path(__file__).with_name("fake_vllm_server.py"))


@pytest.fixture
def server(tmp_path):
    """The path of a server program with the API of vLLM."""
    path = tmp_path / "server.py"
    path.write_text(Path(SERVER).read_text())
    (tmp_path / "behaviour.json").write_text(json.dumps({"generation": "0.32"}))
    return str(path)


def command(server, *more):
    return (sys.executable, server, "--host", "127.0.0.1", "--port", "{port}", "--model", "{model}", *more)


@pytest.mark.slow
def test_a_run_starts_the_command_with_model_and_port_and_stops_it(server, tiny_model, tmp_path):
    backend = Command("other", command(server), model=str(tiny_model))
    backend.prepare(lambda line: None)
    run = execute_run(
        backend, DATASET, Load(rate=math.inf, num_prompts=2, num_warmup=0), results=tmp_path / "r"
    )
    assert run.complete
    assert run.info["backend"]["name"] == "other"
    assert run.info["backend"]["settings"] == {
        "command": f"{sys.executable} {server} --host 127.0.0.1 --port '{{port}}' --model '{{model}}'"
    }
    filled = run.info["server"]["command"]
    assert filled[filled.index("--model") + 1] == str(tiny_model)
    assert filled[filled.index("--port") + 1] == run.info["backend"]["url"].rpartition(":")[2]
    assert (run.path / "server.log").read_text().count("Resolved architecture") == 1
    assert not backend.alive()


@pytest.mark.slow
def test_tables_show_our_name_of_the_model(server, tiny_model, tmp_path):
    backend = Command("other", command(server, "--served-model-name", "alias"), model=str(tiny_model))
    try:
        ready = backend.start(tmp_path / "log", lambda line: None)
    finally:
        backend.stop()
    assert (ready.model, ready.shown_model) == ("alias", str(tiny_model))


def filled(*words, model="m"):
    return Command("x", ["true", "{port}", *words], model=model).command(80)[2:]


def test_placeholders_are_filled_in():
    assert filled("--m={model}", "a{port}b{port}") == ["--m=m", "a80b80"]
    assert filled("{{model}}", '{"a": {"b": 1}}', "{}", "{1}") == ["{model}", '{"a": {"b": 1}}', "{}", "{1}"]


def test_a_folder_becomes_a_full_path(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    assert filled("{model}", model="weights") == [str(tmp_path / "weights")]
    assert filled("{model}", model="org/name") == ["org/name"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["true", "{prot}", "{port}"],
            r"--backend x: \{prot\} is no placeholder: use \{model\} and \{port\}",
        ),
        (["true", "--port", "80"], r"--backend x: the command has no \{port\}"),
        (["no-such-program", "{port}"], "--backend x: there is no program 'no-such-program'"),
    ],
)
def test_wrong_commands_are_refused_before_anything_starts(words, message):
    with pytest.raises(ValueError, match=message):
        Command("x", words, model="m")


def test_a_fixed_port_needs_no_placeholder():
    assert Command("x", ["true"], model="m", port=80).command(80)[1:] == []


@pytest.mark.slow
def test_a_command_that_ends_shows_its_log(tmp_path):
    backend = Command("x", [sys.executable, "-c", "print('no model {port}')"], model="m")
    with pytest.raises(BackendError, match=r"(?s)ended before it was ready \(exit code 0\).*no model \d+"):
        backend.start(tmp_path / "log", lambda line: None)


def test_the_chosen_cores_are_recorded():
    core = min(os.sched_getaffinity(0))
    pinned = Command("x", ["true", "{port}"], model="m", cores=[core])
    assert pinned.settings["cores"] == str(core)
    assert "cores" not in Command("x", ["true", "{port}"], model="m").settings
    with pytest.raises(ValueError, match=r"--cores 4095: a process cannot use core 4095 here"):
        Command("x", ["true", "{port}"], model="m", cores=[4095])


def test_a_server_without_health_is_ready_when_it_lists_its_models():
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    begun = time.monotonic()
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            loading = time.monotonic() - begun < 0.3
            self.send_response(404 if self.path == "/health" else 503 if loading else 200)
            self.end_headers()
            self.wfile.write(b'{"message": "loading"}')

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        reported = []
        wait_until_ready(f"http://127.0.0.1:{server.server_port}", timeout=10, report=reported.append)
        server.shutdown()
        thread.join()
    assert time.monotonic() - begun >= 0.3
    assert reported == ["loading"]
    assert "/v1/models" in asked
