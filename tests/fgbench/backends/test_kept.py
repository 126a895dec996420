"""One server for run after run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgbench.backends import kept
from fgbench.backends.backend import BackendError, Served
from fgbench.backends.kept import Kept


class Counted:
    name, policy, model = "counted", None, None
    settings: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.starts = self.stops = 0
        self.logs: list[Path] = []
        self.running = False

    def start(self, log: Path, report: Any) -> Served:
        assert not self.running, "two servers at once"
        self.starts += 1
        self.logs.append(log)
        self.running = True
        return Served(f"http://server:{self.starts}", "m")

    def alive(self) -> bool:
        return self.running

    def last_words(self) -> str:
        return "bye"

    def stop(self) -> None:
        self.stops += self.running
        self.running = False


@pytest.fixture
def counted() -> Counted:
    return Counted()


def start(server: Kept) -> Served:
    return server.start(Path("the run's log"), lambda line: None)


def test_it_is_started_once_and_stopped_by_close(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    idle: list[str] = []
    monkeypatch.setattr(kept, "wait_until_idle", lambda url, **_: idle.append(url))
    server = Kept(counted, Path("log of all"))
    for _ in range(3):
        assert start(server).url == "http://server:1"
        server.stop()
    assert (counted.starts, counted.stops) == (1, 0)
    assert counted.logs == [Path("log of all")]
    assert idle == ["http://server:1"] * 2  # before each further run
    server.close()
    server.close()
    assert (counted.starts, counted.stops) == (1, 1)


def test_a_dead_one_is_started_again(counted: Counted) -> None:
    server = Kept(counted, Path("log"))
    start(server)
    counted.running = False
    assert start(server).url == "http://server:2"


def test_one_that_does_not_get_idle_is_started_again(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(url: str, **_: Any) -> None:
        raise BackendError("it still has 3 requests")

    monkeypatch.setattr(kept, "wait_until_idle", busy)
    server = Kept(counted, Path("log"))
    said: list[str] = []
    start(server)
    assert server.start(Path(), said.append).url == "http://server:2"
    assert said == ["it still has 3 requests: starting anew"]
    assert counted.stops == 1
