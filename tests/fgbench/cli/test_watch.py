"""Tests of ``fgbench watch`` against a fake server of statistics."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fgbench.backends.started import free_port
from fgbench.cli.main import app
from fgbench.live import watching

SERVER = Path(__file__).with_name("stats_server.py")


class StatsServer:
    """A process that answers /stats (or /metrics) and can be killed."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[str]] = []
        self.port = free_port()

    def start(self, kind: str = "fastgen") -> str:
        process = subprocess.Popen(
            [sys.executable, str(SERVER), str(self.port), kind], stdout=subprocess.PIPE, text=True
        )
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        while self.processes:
            process = self.processes.pop()
            process.kill()
            process.communicate()


@pytest.fixture
def server() -> Iterator[StatsServer]:
    made = StatsServer()
    yield made
    made.kill()


def watch(*argv: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["watch", *argv], env={"COLUMNS": "80"})
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.slow
def test_once_prints_the_panel_with_rates(server: StatsServer) -> None:
    code, out, _ = watch(server.start(), "--once", "--interval", "0.2")
    assert code == 0
    for words in ("tiny · sj-mlfq", "running 2", "waiting 5", "2/4", "30/40", "75%", "Q1", "1.02 s"):
        assert words in out
    # Per second of uptime, the fake server counts 100 tokens and 2 steps of 0.1 s each.
    assert re.search(r"output tokens/s +100 ", out), out
    assert re.search(r"step time +100 ms ", out), out
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.slow
def test_json_prints_stats_and_rates(server: StatsServer) -> None:
    url = server.start()
    code, out, _ = watch(url, "--once", "--json", "--interval", "0.2")
    assert code == 0
    printed = json.loads(out)
    assert printed["url"] == url
    assert printed["stats"]["levels"][1] == {"name": "Q2", "requests": 4, "quantum": 1.02}
    assert printed["stats"]["a number that is none"] is None
    assert printed["rates"]["generated_tokens"] == pytest.approx(100)
    assert printed["rates"]["offloaded_bytes"] == pytest.approx(3 * 4096)


@pytest.mark.slow
def test_json_lines_end_with_exit_1_when_the_server_ends(
    server: StatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "PATIENCE_SECONDS", 0.3)
    asked = 0
    tick = watching.Watch.tick

    def counted(watched: watching.Watch) -> None:
        nonlocal asked
        asked += 1
        if asked == 4:
            server.kill()
        tick(watched)

    monkeypatch.setattr(watching.Watch, "tick", counted)
    code, out, err = watch(server.start(), "--json", "--interval", "0.1")
    assert code == 1
    assert len(out.splitlines()) == 3
    assert json.loads(out.splitlines()[0])["rates"] is None
    assert json.loads(out.splitlines()[2])["rates"]["finished"] is not None
    assert "has not answered for 0.3 s and has probably ended" in err
    assert asked > 5  # it tried again


@pytest.mark.slow
def test_lines_without_a_terminal_and_with_a_restarted_server(
    server: StatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    tick = watching.Watch.tick

    def counted(watched: watching.Watch) -> None:
        nonlocal asked
        asked += 1
        if asked == 3:
            server.kill()
        if asked == 5:
            server.start()
        if asked == 7:
            raise KeyboardInterrupt
        tick(watched)

    monkeypatch.setattr(watching.Watch, "tick", counted)
    code, out, _ = watch(server.start(), "--interval", "0.1")
    assert code == 130
    lines = out.splitlines()
    assert "running 2, waiting 5, offloaded 1, device KV 75%, host KV 0%" in lines[0]
    assert "output tokens/s" in lines[1]
    assert all("no server answers at" in line for line in lines[2:4])
    assert "running 2" in lines[4]
    assert "output tokens/s" not in lines[4]  # started again: nothing to compare with
    assert "100 output tokens/s" in lines[5]


def test_no_server_at_the_url() -> None:
    begun = time.monotonic()
    for more in ([], ["--once"], ["--json"]):
        code, out, err = watch(f"127.0.0.1:{free_port()}", *more)
        assert code == 1
        assert out == ""
        assert "no server answers at http://127.0.0.1:" in err
        assert "Traceback" not in err
    assert time.monotonic() - begun < 5


def test_a_server_without_stats(server: StatsServer) -> None:
    code, _, err = watch(server.start("other"))
    assert code == 1
    assert "has neither fastgen's /stats nor vLLM's /metrics" in err


@pytest.mark.slow
def test_the_metrics_of_vllm_are_shown(server: StatsServer) -> None:
    code, out, _ = watch(server.start("vllm"), "--once", "--interval", "0.2")
    assert code == 0
    for words in ("org/model", "running 7", "waiting 2", "device KV", "25%", "output tokens/s"):
        assert words in out
    assert "offload" not in out


def test_once_does_not_wait_for_a_loading_server(server: StatsServer) -> None:
    code, _, err = watch(server.start("loading"), "--once")
    assert code == 1
    assert "is not ready: loading the model" in err


@pytest.mark.slow
def test_watch_waits_for_a_loading_server(server: StatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PATIENCE_SECONDS", 0.2)
    code, out, _ = watch_some(monkeypatch, server.start("loading"), looks=6)
    assert code == 130
    assert out.count("not ready: loading the model") == 6  # a loading server gets more time than a silent one


def watch_some(monkeypatch: pytest.MonkeyPatch, url: str, looks: int) -> tuple[int, str, str]:
    asked = 0
    tick = watching.Watch.tick

    def counted(watched: watching.Watch) -> None:
        nonlocal asked
        asked += 1
        if asked > looks:
            raise KeyboardInterrupt
        tick(watched)

    monkeypatch.setattr(watching.Watch, "tick", counted)
    return watch(url, "--interval", "0.1")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ftp://h"], "is not a URL of a server"),
        (["--interval", "0"], "0.1"),
        (["--nonsense"], "No such option"),
    ],
)
@pytest.mark.slow
def test_wrong_usage(argv: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fgbench", "watch", *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_a_terminal_gets_an_alternate_screen_that_a_signal_ends(
    server: StatsServer, number: signal.Signals
) -> None:
    import fcntl
    import os
    import pty
    import struct
    import termios

    url = server.start()
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "fgbench", "watch", url, "--interval", "0.1"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**env, "TERM": "xterm-256color"},
    )
    os.close(follower)
    seen = _read_until(leader, lambda text: "output tokens/s" in text)
    assert "\x1b[?1049h" in seen  # the alternate screen
    fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 60, 0, 0))
    _read_until(leader, lambda text: "running" in text.rpartition("\x1b[H")[2])
    process.send_signal(number)
    rest = _read_until(leader, lambda text: False)
    assert process.wait(5) == 130
    os.close(leader)
    after = rest.rpartition("\x1b[?1049l")[2]
    assert "running" in after  # the last panel remains
    assert "Traceback" not in rest


def _read_until(terminal: int, enough: Any) -> str:
    """Read from the terminal until ``enough`` is true or the other side closes it."""
    import os

    text = ""
    while not enough(text):
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the other side has closed it
            break
        if not piece:
            break
        text += piece.decode("utf-8", "replace")
    return text
