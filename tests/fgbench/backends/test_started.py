"""Tests of servers that are started for one run, or shared by several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fgbench.backends import started
from fgbench.backends.backend import BackendError, ReadyServer
from fgbench.backends.started import StartedServer


class Counted(StartedServer):
    """Counts starts and stops, but starts no process."""

    name = "counted"

    def __init__(self) -> None:
        super().__init__()
        self.starts = self.stops = 0
        self.logs: list[Path] = []
        self.running = False

    def command(self, port: int) -> Sequence[str]:
        raise NotImplementedError

    def _start_new(self, log: Path, report: Any) -> ReadyServer:
        assert not self.running, "two servers at once"
        self.starts += 1
        self.logs.append(log)
        self.running = True
        return ReadyServer(f"http://server:{self.starts}", "m")

    def alive(self) -> bool:
        return self.running

    def close(self) -> None:
        self.stops += self.running
        self.running = False


@pytest.fixture
def server() -> Counted:
    return Counted()


def start(server: Counted, report: Any = lambda line: None) -> ReadyServer:
    return server.start(Path("the run's log"), report)


def test_a_server_that_is_not_shared_is_started_and_stopped_for_each_run(server: Counted) -> None:
    for number in (1, 2):
        assert start(server).url == f"http://server:{number}"
        server.stop()
    assert (server.starts, server.stops) == (2, 2)
    assert server.logs == [Path("the run's log")] * 2


def test_a_shared_server_is_started_once_and_stopped_by_close(
    server: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle: list[str] = []
    monkeypatch.setattr(started, "wait_until_idle", lambda url, **_: idle.append(url))
    server.share(Path("log of all"))
    for _ in range(3):
        assert start(server).url == "http://server:1"
        server.stop()
    assert (server.starts, server.stops) == (1, 0)
    assert server.logs == [Path("log of all")]
    assert idle == ["http://server:1"] * 2  # before each further run
    server.close()
    server.close()
    assert (server.starts, server.stops) == (1, 1)


def test_a_dead_shared_server_is_started_again(server: Counted) -> None:
    server.share(Path("log"))
    start(server)
    server.running = False
    assert start(server).url == "http://server:2"


def test_a_shared_server_that_does_not_become_idle_is_started_again(
    server: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(url: str, **_: Any) -> None:
        raise BackendError("it still has 3 requests")

    monkeypatch.setattr(started, "wait_until_idle", busy)
    server.share(Path("log"))
    reported: list[str] = []
    start(server)
    assert start(server, reported.append).url == "http://server:2"
    assert reported == ["it still has 3 requests: starting a new server"]
    assert server.stops == 1
