"""One server for run after run; and whether requests are left at one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fgbench.backends import kept, probe
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


def answers(monkeypatch: pytest.MonkeyPatch, pages: dict[str, Any]) -> None:
    def get(url: str) -> tuple[int | None, Any]:
        page = pages.get(url.rpartition("/")[2])
        return (404, "") if page is None else (200, page.pop(0) if isinstance(page, list) else page)

    monkeypatch.setattr(probe, "_get", get)


VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 5.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 5.0
"""


def test_requests_at_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, {"stats": {"num_device_blocks": 9, "running": 1, "waiting": 2, "swapped": 4}})
    assert probe.ask_requests("http://h") == 7
    answers(monkeypatch, {"metrics": VLLM})
    assert probe.ask_requests("http://h") == 7
    answers(monkeypatch, {"metrics": "up 1.0\n"})
    assert probe.ask_requests("http://h") is None
    answers(monkeypatch, {})
    assert probe.ask_requests("http://h") is None


def test_waiting_until_a_server_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [{"num_device_blocks": 9, "running": n, "waiting": 0, "swapped": 0} for n in (3, 1, 0)]
    answers(monkeypatch, {"stats": left})
    monkeypatch.setattr(probe, "POLL_SECONDS", 0.001)
    probe.wait_until_idle("http://h", timeout=10.0)
    assert left == []
    busy = {"num_device_blocks": 9, "running": 3, "waiting": 0, "swapped": 0}
    answers(monkeypatch, {"stats": busy})
    with pytest.raises(BackendError, match=r"still has 3 requests after 0\.01 s"):
        probe.wait_until_idle("http://h", timeout=0.01)
    with pytest.raises(BackendError, match="ended while its last requests"):
        probe.wait_until_idle("http://h", timeout=10.0, alive=lambda: False)
    answers(monkeypatch, {})
    probe.wait_until_idle("http://h", timeout=0.0)  # it does not say
