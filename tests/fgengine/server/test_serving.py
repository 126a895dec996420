"""The server's process and its engine's process: start, signals, failures, and no orphaned processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
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
from tokenizers import Tokenizer

from fgengine.config import EngineConfig
from fgengine.server import encoding
from fgengine.server.options import ServerOptions
from fgengine.server.process import EngineProcess, describe_exit
from fgengine.server.serving import run

SERVE = """
import json, sys
from pathlib import Path
from fgengine.config import EngineConfig
from fgengine.server.options import ServerOptions
from fgengine.server.serving import run
folder, port, fake, model, slow, options = sys.argv[1:]
config = EngineConfig(model=model, starvation_limit=float(slow))
def report(text): print(text, flush=True)
options = ServerOptions(port=int(port), **json.loads(options))
sys.exit(run(config, options, lambda: Path(folder), report=report, worker=[sys.executable, fake]))
"""


class Server:
    """A server's process with a fake engine's process."""

    def __init__(
        self, folder: Path, fake: Path, *, model: str = "smollm2-135m", slow: float = 10.0, **options: Any
    ) -> None:
        """``options``: settings of the server."""
        words = [model, str(slow), json.dumps(options)]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(folder), str(self.port), str(fake), *words],
                stdout=log,
                stderr=log,
            )
        self.children: list[psutil.Process] = []

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, json.dumps(body) if body is not None else None)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def ready(self) -> Server:
        while True:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError):
                if self.ask("GET", "/health")[0] == 200:
                    break
            time.sleep(0.02)
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        assert self.children
        return self

    @property
    def engine(self) -> psutil.Process:
        """The engine's process."""
        (found,) = (
            child
            for child in psutil.Process(self.process.pid).children()
            if "fake_engine.py" in " ".join(child.cmdline())
        )
        return found

    def wait_for_log(self, text: str) -> None:
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.01)

    def wait_for_health(self, state: str) -> None:
        while self.ask("GET", "/health")[1]["status"] != state:
            time.sleep(0.02)

    def exit_code(self, within: float = 5.0) -> int:
        return self.process.wait(timeout=within)

    def no_orphans(self) -> bool:
        _, alive = psutil.wait_procs(self.children, timeout=3)
        return not alive


@pytest.fixture
def folder(byte_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    byte_tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def server(folder: Path, fake_engine_file: Path) -> Iterator[Server]:
    server = Server(folder, fake_engine_file).ready()
    yield server
    server.process.kill()
    server.process.wait()


def _stream(server: Server, body: dict[str, Any]) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}))
    response = connection.getresponse()
    assert response.status == 200
    return response


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
@pytest.mark.slow
def test_a_signal_ends_open_streams_and_all_processes(
    folder: Path, fake_engine_file: Path, number: int, code: int
) -> None:
    server = Server(folder, fake_engine_file, drain_timeout=0.3).ready()
    response = _stream(server, {"prompt": [97, 259], "max_tokens": 4000})
    assert response.readline().startswith(b"data: ")
    server.process.send_signal(number)
    assert b"shutting down" in response.read()
    assert server.exit_code() == code
    assert server.no_orphans()
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.slow
def test_open_requests_are_finished_before_the_server_ends(
    folder: Path, fake_engine_file: Path, number: int
) -> None:
    server = Server(folder, fake_engine_file, slow=100.0).ready()  # 10 ms a token
    response = _stream(server, {"prompt": [97], "max_tokens": 200})
    for process in (*server.children, server.process):  # as a closed terminal and systemd send it
        process.send_signal(number)
    server.wait_for_log("they have 30 s to finish")
    status, answer = server.ask("POST", "/v1/completions", {"prompt": [97]})
    assert (status, answer["error"]["message"]) == (
        503,
        "the server is shutting down: it only finishes the requests that it has",
    )
    assert [server.ask("GET", path)[0] for path in ("/health", "/health/ready", "/health/live")] == [
        503,
        503,
        200,
    ]
    lines = response.read().splitlines()
    assert sum(b'"choices"' in line for line in lines) == 200
    assert lines[-2] == b"data: [DONE]"
    assert server.exit_code() == 0
    assert server.no_orphans()


@pytest.mark.slow
def test_an_unfinished_request_does_not_delay_the_end(folder: Path, fake_engine_file: Path) -> None:
    server = Server(folder, fake_engine_file).ready()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
        connection.sendall(head + b'{"prompt"')
        time.sleep(0.2)
        server.process.terminate()
        connection.settimeout(10)
        assert b"503" in connection.recv(1000).partition(b"\r\n")[0]
    assert server.exit_code(10.0) == 0


@pytest.mark.slow
def test_an_engine_that_ends_while_the_server_drains_is_not_replaced(
    folder: Path, fake_engine_file: Path
) -> None:
    server = Server(folder, fake_engine_file, restart_engine=2).ready()
    response = _stream(server, {"prompt": [97, 259], "max_tokens": 4000})
    response.readline()
    server.process.terminate()
    server.wait_for_log("they have 30 s to finish")
    server.engine.kill()
    assert b'"type":"service_unavailable"' in response.read()
    assert server.exit_code(10.0) == 0
    assert server.log.read_text().count("ready: ") == 1
    assert "being replaced" not in server.log.read_text()


@pytest.mark.slow
def test_a_stopped_engine_is_noticed_and_continues(folder: Path, fake_engine_file: Path) -> None:
    server = Server(folder, fake_engine_file, hang_timeout=0.3).ready()
    response = _stream(server, {"prompt": [97], "max_tokens": 3000})
    response.readline()
    server.engine.suspend()
    server.wait_for_health("hung")
    for method, path, body in (("POST", "/v1/completions", {"prompt": [97]}), ("GET", "/stats", None)):
        status, answer = server.ask(method, path, body)
        assert (status, "it has not answered for" in answer["error"]["message"]) == (503, True)
    assert server.ask("GET", "/health/live")[0] == 200
    server.engine.resume()
    server.wait_for_health("ready")
    assert b"[DONE]" in response.read()
    server.process.terminate()
    assert server.exit_code() == 0


@pytest.mark.parametrize("end", ["kill", "suspend"])
@pytest.mark.slow
def test_an_engine_that_ends_or_hangs_is_replaced(folder: Path, fake_engine_file: Path, end: str) -> None:
    server = Server(folder, fake_engine_file, hang_timeout=0.3, restart_engine=1).ready()
    response = _stream(server, {"prompt": [97], "max_tokens": 3000})
    response.readline()
    first = server.engine
    getattr(first, end)()
    assert b'"type":"service_unavailable"' in response.read()
    server.wait_for_health("ready")
    assert server.engine.pid != first.pid
    assert server.ask("POST", "/v1/completions", {"prompt": [97], "max_tokens": 3})[0] == 200
    assert server.ask("GET", "/stats")[1]["requests_failed"] == 1
    server.engine.kill()
    assert server.exit_code() == 1
    assert "the engine is broken: its process was killed" in server.log.read_text()
    assert server.no_orphans()


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_both_processes_in_order(server: Server) -> None:
    for process in (server.process, *server.children):
        process.send_signal(signal.SIGINT)
    assert server.exit_code() == 130
    assert server.no_orphans()


@pytest.mark.slow
def test_a_second_signal_ends_a_stuck_server_at_once(folder: Path, fake_engine_file: Path) -> None:
    server = Server(folder, fake_engine_file, slow=600_000.0).ready()  # steps of a minute
    response = _stream(server, {"prompt": "a", "max_tokens": 2})
    server.process.send_signal(signal.SIGTERM)
    while "stopping" not in server.log.read_text():
        time.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    assert server.exit_code(1.0) == 128 + signal.SIGTERM
    assert server.no_orphans()
    response.close()


@pytest.mark.slow
def test_a_stuck_step_does_not_stop_the_server_from_ending(folder: Path, fake_engine_file: Path) -> None:
    server = Server(folder, fake_engine_file, slow=600_000.0).ready()
    response = _stream(server, {"prompt": "a", "max_tokens": 2})
    server.process.send_signal(signal.SIGINT)
    assert server.exit_code() == 130
    assert server.no_orphans()
    response.close()


@pytest.mark.slow
def test_the_engine_ends_when_the_server_is_killed(server: Server) -> None:
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    assert server.no_orphans()


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (256, "the fake broke"),
        (257, "its process ended with exit status 9"),
        (260, "its process was killed (signal 9, SIGKILL); the kernel does this when memory runs out"),
    ],
)
@pytest.mark.slow
def test_a_broken_engine_is_reported_and_ends_the_server(server: Server, token: int, message: str) -> None:
    status, answer = server.ask("POST", "/v1/completions", {"prompt": [token]})
    assert status == 503
    assert message in answer["error"]["message"]
    status, health = server.ask("GET", "/health")
    assert (status, health["status"]) == (503, "broken")
    assert message in health["message"]
    assert server.exit_code() == 1
    assert server.no_orphans()


def test_an_exit_status_is_described_in_words() -> None:
    assert describe_exit(1) == "its process ended with exit status 1"
    assert describe_exit(-signal.SIGSEGV) == "its process was ended by signal 11, SIGSEGV"
    assert describe_exit(-40) == "its process was ended by signal 40"


async def test_the_message_about_a_dead_process_quotes_its_last_output() -> None:
    """An exit status or signal alone explains little."""
    dying = "import os, sys; print('loading\\n\\nno room left', file=sys.stderr, flush=True); os.abort()"
    engine = EngineProcess(command=[sys.executable, "-c", dying])
    await engine.start(EngineConfig())
    await engine.settled.wait()
    assert engine.state == "broken"
    assert engine.message.endswith("ended by signal 6, SIGABRT; its last output: loading / no room left")
    await engine.stop()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
@pytest.mark.slow
def test_a_signal_ends_a_server_whose_engine_still_starts(
    folder: Path, fake_engine_file: Path, number: int, code: int
) -> None:
    stuck = folder / "stuck_fake_engine.py"
    stuck.write_text("import time; print('stuck', flush=True); time.sleep(60)")
    server = Server(folder, stuck)
    server.wait_for_log("stuck")
    server.children = psutil.Process(server.process.pid).children(recursive=True)
    assert len(server.children) == 2
    server.process.send_signal(number)
    assert server.exit_code() == code
    assert server.no_orphans()
    assert server.log.read_text() == "stuck\nstopping\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals_to_all_processes_do_not_disturb_the_imports_of_children(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """They ignore the signal, as soon as they have imported what they need."""
    code = f"import os; os.kill(os.getpid(), {int(number)}); os._exit(7)"
    command = [sys.executable, "-c", code]
    engine = EngineProcess(command=command)
    await engine.start(EngineConfig())
    await engine.settled.wait()
    assert "exit status 7" in engine.message
    await engine.stop()
    monkeypatch.setattr(encoding, "WORKER", command)
    process = encoding.TextProcess(Path())
    with pytest.raises(encoding.EncodingError, match="exit status 7"):
        process.loaded()
    process.close()


@pytest.mark.slow
def test_an_engine_that_cannot_start_ends_the_server(folder: Path, fake_engine_file: Path) -> None:
    server = Server(folder, fake_engine_file, model="opt-350m")
    assert server.exit_code(20.0) == 1
    assert "the engine could not start: there is no such model" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


@pytest.mark.slow
def test_a_missing_tokenizer_ends_the_server(tmp_path: Path, fake_engine_file: Path) -> None:
    server = Server(tmp_path, fake_engine_file)
    assert server.exit_code(20.0) == 1
    assert "no tokenizer.json" in server.log.read_text()


@pytest.mark.slow
def test_a_port_in_use_is_reported_in_one_line(folder: Path, fake_engine_file: Path, server: Server) -> None:
    second = subprocess.run(
        [sys.executable, "-c", SERVE, folder, str(server.port), fake_engine_file, "smollm2-135m", "1", "{}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert second.stdout.count("\n") == 1
    assert f"127.0.0.1:{server.port}" in second.stdout
    assert "Traceback" not in second.stderr


def test_an_unknown_host_is_reported() -> None:
    lines: list[str] = []
    assert run(EngineConfig(), ServerOptions("300.1.1.1", 0), Path, report=lines.append) == 1
    assert lines == ["cannot listen on 300.1.1.1:0: Name or service not known; give another --host or --port"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
async def test_a_body_with_a_wrong_encoding_is_the_clients_mistake(served: Any, encoding: str) -> None:
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    async with served.session.post(
        f"{served.url}/v1/completions", data=b'{"prompt": "a"}', headers=headers
    ) as answer:
        known = (400,) if encoding in ("gzip", "deflate") else (400, 415)  # the others need more packages
        assert answer.status in known, await answer.text()
        assert (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_a_wrong_method_names_the_right_ones(served: Any) -> None:
    async with served.session.get(f"{served.url}/v1/completions") as answer:
        assert answer.status == 405
        assert answer.headers["Allow"] == "POST"
