"""Tests of measuring the load of other programs."""

from __future__ import annotations

import os
import socket
import sys
import time

import psutil
import pytest

from fgbench import machine
from fgbench.machine import MachineWatch, busy_since, server_processes
from fgengine.machine_load import sample

HOG = [sys.executable, "-c", "while True: pass"]


@pytest.mark.slow
def test_the_load_of_another_program_is_measured(busy_program: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "INTERVAL", 0.2)
    with MachineWatch() as watch:
        time.sleep(1.1)
    account = watch.account
    assert account is not None
    assert account.busy
    assert account.other_cores > 0.1
    assert account.peak_cores >= account.other_cores
    assert account.busy_share > 0.5
    assert account.seconds >= 1.0
    assert account.programs


@pytest.mark.slow
def test_the_server_under_test_does_not_count_as_another_program(busy_program: int) -> None:
    """The server's CPU time counts as ours."""
    with MachineWatch([busy_program]) as watch:
        time.sleep(0.5)
    assert watch._before is not None
    assert busy_program in watch._before.ours
    assert busy_program not in watch._before.programs


def test_an_exception_is_raised_and_the_watch_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = MachineWatch()
    with pytest.raises(KeyboardInterrupt), watch:
        raise KeyboardInterrupt
    assert watch.account is not None
    assert not watch._thread.is_alive()


@pytest.mark.slow
def test_a_busy_machine_is_noticed_before_the_load_begins(
    busy_program: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sample()
    assert busy_since(before, "http://192.0.2.7:8000") is None, "no time has passed"
    time.sleep(0.6)
    sentence = busy_since(before, "http://192.0.2.7:8000")
    assert sentence is not None
    assert sentence.startswith("other programs took")
    monkeypatch.setattr(machine, "server_processes", lambda url: None)
    assert busy_since(before, "http://127.0.0.1:1") is None, "the server's processes are not known"


def test_the_process_that_listens_on_the_port_is_the_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            assert server_processes(f"http://{host}:{port}") == [os.getpid()]
    assert server_processes(f"http://127.0.0.1:{port}") is None, "no process listens on the port now"


def test_the_server_behind_a_forwarder_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    name = psutil.Process().name()
    monkeypatch.setattr(machine, "FORWARDERS", (name,))
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert server_processes(f"http://127.0.0.1:{server.getsockname()[1]}") is None


def test_a_server_on_another_machine_has_no_processes_here() -> None:
    assert server_processes("http://192.0.2.7:8000") == []
    assert server_processes("https://example.org") == []
