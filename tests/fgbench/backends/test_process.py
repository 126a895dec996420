import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from fgbench.backends.started import STOP_STEPS, ServerProcess, free_port

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid, flush=True)
time.sleep(60)
"""


POLITE = """
import time
try:
    print("up", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("asked to stop")
"""


def python(code):
    return [sys.executable, "-c", code]


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.02)


def has_ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_stop_sends_sigint_first(tmp_path):
    process = ServerProcess(python(POLITE), tmp_path / "log")
    wait_for(lambda: "up" in process.tail())
    assert process.alive()
    process.stop()
    assert process.exit_status == 0
    assert process.tail().endswith("asked to stop")
    process.stop()  # does nothing


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_receives_signals_that_its_parent_ignores(tmp_path, monkeypatch, number):
    """A job that a script starts in the background ignores SIGINT from its start."""
    monkeypatch.setattr("fgbench.backends.started.STOP_STEPS", [(number, 10.0), (signal.SIGKILL, 10.0)])
    before = signal.signal(number, signal.SIG_IGN)
    try:
        process = ServerProcess(
            python("print('up', flush=True); import time; time.sleep(60)"), tmp_path / "log"
        )
    finally:
        signal.signal(number, before)
    wait_for(lambda: "up" in process.tail())
    process.stop()
    assert process.exit_status == -number


@pytest.mark.slow
def test_a_server_that_ignores_signals_is_killed_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr("fgbench.backends.started.STOP_STEPS", [(number, 0.3) for number, _ in STOP_STEPS])
    process = ServerProcess(python(STUBBORN), tmp_path / "log")
    wait_for(lambda: "child" in process.tail())
    child = int(process.tail().split()[1])
    process.stop()
    assert process.exit_status == -signal.SIGKILL
    wait_for(lambda: has_ended(child))


def test_a_child_that_outlives_its_server_is_killed_too(tmp_path):
    without_waiting = STUBBORN.rsplit("time.sleep(60)", 1)[0]
    process = ServerProcess(python(without_waiting), tmp_path / "log")
    wait_for(lambda: not process.alive())
    child = int(process.tail().split()[1])
    assert not has_ended(child)
    process.stop()
    wait_for(lambda: has_ended(child))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.slow
def test_a_server_ends_when_its_parent_is_killed(tmp_path, number):
    parent_code = (
        "import sys, time; from pathlib import Path; from fgbench.backends.started import ServerProcess\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
        f"p = ServerProcess(sleep, Path({str(tmp_path / 'log')!r}))\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(python(parent_code), stdout=subprocess.PIPE, text=True)
    server = int(parent.stdout.readline())
    wait_for(lambda: "die_with_parent" not in " ".join(psutil.Process(server).cmdline()))
    os.kill(parent.pid, number)
    parent.wait(10)
    parent.stdout.close()
    wait_for(lambda: has_ended(server))


def test_tail_returns_the_last_lines_of_the_log(tmp_path):
    process = ServerProcess(
        python("for i in range(1000): print('line', i)\nraise SystemExit(3)"), tmp_path / "log"
    )
    wait_for(lambda: not process.alive())
    process.stop()
    assert process.exit_status == 3
    assert process.tail().splitlines()[-1] == "line 999"
    assert len(process.tail().splitlines()) < 50


def test_free_ports_are_free():
    assert 1024 <= free_port() < 65536
