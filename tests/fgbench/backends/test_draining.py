"""Tests of counting a server's requests and waiting until it is idle: fastgen, vLLM and other servers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fgbench.backends import probe
from fgbench.backends.attached import Attached
from fgbench.backends.backend import BackendError
from fgbench.backends.probe import SilentServer, ask_requests, wait_until_idle
from fgbench.backends.started import free_port


def fastgen_stats(running: int, waiting: int = 0, swapped: int = 0) -> dict[str, int]:
    return {"num_device_blocks": 9, "running": running, "waiting": waiting, "swapped": swapped}


@pytest.fixture(autouse=True)
def short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "POLL_SECONDS", 0.001)


def test_requests_at_a_server(fake_server: Any) -> None:
    assert ask_requests(fake_server.url) is None  # the server does not report it
    fake_server.vllm = lambda: (16, 8)
    assert ask_requests(fake_server.url) == 24
    fake_server.stats = fastgen_stats(1, 2, 4)
    assert ask_requests(fake_server.url) == 7


def test_vllm_metrics_without_counts_of_requests_give_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        probe, "ask", lambda url: (200, "vllm:kv_cache_usage_perc 0.5\n") if "metrics" in url else (404, "")
    )
    assert ask_requests("http://h") is None


def test_a_silent_server_is_not_idle() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SilentServer):
        ask_requests(url)
    with pytest.raises(SilentServer, match=f"the server at {url} has not answered for 0.05 s"):
        wait_until_idle(url, timeout=0.05)


def test_a_server_too_busy_to_answer_is_asked_again(
    fake_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "ANSWER_SECONDS", 0.05)
    answers: Iterator[Any] = iter([None, (3, 0), None, (0, 0)])
    fake_server.vllm = lambda: next(answers)
    wait_until_idle(fake_server.url, timeout=10.0)
    assert list(answers) == []


@pytest.mark.slow
def test_a_wait_is_reported_with_the_number_of_requests(
    fake_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "QUIET_SECONDS", 0.0)
    left = iter([(16, 8), (9, 0), (1, 0), (0, 0)])
    fake_server.vllm = lambda: next(left)
    reported: list[str] = []
    wait_until_idle(fake_server.url, timeout=60.0, report=reported.append)
    assert reported == [f"waiting for 24 requests at {fake_server.url} to end, at most 60 s"]
    fake_server.vllm = lambda: (1, 0)
    monkeypatch.setattr(probe, "SAY_SECONDS", 0.0)
    reported.clear()
    with pytest.raises(BackendError, match=r"still has 1 request after 0\.5 s"):
        wait_until_idle(fake_server.url, timeout=0.5, report=reported.append)
    assert len(reported) > 1
    assert reported[0].startswith("waiting for 1 request at")


def test_nothing_is_reported_for_an_idle_server(fake_server: Any) -> None:
    fake_server.stats = fastgen_stats(0)
    reported: list[str] = []
    wait_until_idle(fake_server.url, timeout=1.0, report=reported.append)
    assert reported == []


def test_the_wait_ends_with_the_server_process(fake_server: Any) -> None:
    fake_server.stats = fastgen_stats(3)
    with pytest.raises(BackendError, match="ended before its last requests"):
        wait_until_idle(fake_server.url, timeout=10.0, alive=lambda: False)


def test_a_load_that_must_be_alone_waits_for_others(fake_server: Any) -> None:
    """Also before the first point, because a killed sweep may have left requests."""
    left = iter([(16, 8), (3, 0), (0, 0)])
    fake_server.vllm = lambda: next(left)
    served = Attached(fake_server.url, alone=True).start(Path("log"), lambda line: None)
    assert served.model == "fake"
    assert list(left) == []


def test_a_load_that_must_be_alone_does_not_start_with_others(
    fake_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgbench.backends.attached.DRAIN_SECONDS", 0.05)
    fake_server.vllm = lambda: (2, 0)
    begun = time.monotonic()
    with pytest.raises(BackendError, match=r"still has 2 requests after 0\.05 s, and requests of another"):
        Attached(fake_server.url, alone=True).start(Path("log"), lambda line: None)
    assert time.monotonic() - begun < 5


def test_other_requests_are_reported_if_a_load_need_not_be_alone(fake_server: Any) -> None:
    fake_server.vllm = lambda: (2, 1)
    reported: list[str] = []
    Attached(fake_server.url).start(Path("log"), reported.append)
    assert reported[-1] == "the server already has 3 other requests, which will change the figures"
    fake_server.vllm = lambda: (0, 0)
    reported.clear()
    Attached(fake_server.url).start(Path("log"), reported.append)
    assert reported == [f"connecting to {fake_server.url}"]
