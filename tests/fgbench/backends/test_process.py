import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from fgbench.backends import process as process_module
from fgbench.backends.process import ServerProcess
from fgbench.backends.started import free_port

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid, flush=True)
time.sleep(60)
"""


POLITE = """
import signal, sys, time
def stop(number, frame):
    print("asked to stop", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
time.sleep(60)
"""

LEAVES_CHILDREN = """
import signal, subprocess, sys, time
code = "import signal, time; {ignore}; print('ready', flush=True); time.sleep(60)"
ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if {stubborn} else "pass"
child = subprocess.Popen([sys.executable, "-c", code.format(ignore=ignore)], start_new_session={detached})
time.sleep(0.3)
print("child", child.pid, flush=True)
time.sleep(60)
"""
"""A server that ends at SIGTERM without stopping its child."""


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


def test_stop_sends_sigterm_first(tmp_path):
    process = ServerProcess(python(POLITE), tmp_path / "log")
    wait_for(lambda: "up" in process.tail())
    assert process.alive()
    process.stop()
    assert process.exit_status == 0
    assert process.tail().endswith("asked to stop")
    process.stop()  # does nothing


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_receives_signals_that_its_parent_ignores(tmp_path, number):
    """A job that a script starts in the background ignores SIGINT from its start."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        process = ServerProcess(
            python("print('up', flush=True); import time; time.sleep(60)"), tmp_path / "log"
        )
    finally:
        signal.signal(number, before)
    wait_for(lambda: "up" in process.tail())
    os.kill(process.pid, number)
    wait_for(lambda: not process.alive())
    process.stop()
    assert process.exit_status == -number
    assert process.ending() == number.name


@pytest.mark.slow
def test_a_server_that_ignores_signals_is_killed_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(process_module, "STOP_SECONDS", 0.3)
    process = ServerProcess(python(STUBBORN), tmp_path / "log")
    wait_for(lambda: "child" in process.tail())
    child = int(process.tail().split()[1])
    process.stop()
    assert process.exit_status == -signal.SIGKILL
    wait_for(lambda: has_ended(child))


@pytest.mark.slow
def test_a_child_that_outlives_its_server_is_killed_too(tmp_path):
    without_waiting = STUBBORN.rsplit("time.sleep(60)", 1)[0]
    process = ServerProcess(python(without_waiting), tmp_path / "log")
    wait_for(lambda: not process.alive())
    child = int(process.tail().split()[1])
    assert not has_ended(child)
    process.stop()
    wait_for(lambda: has_ended(child))


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.slow
def test_children_that_their_server_does_not_stop_end_with_it(tmp_path, monkeypatch, stubborn, detached):
    monkeypatch.setattr(process_module, "GROUP_SECONDS", 0.3)
    code = LEAVES_CHILDREN.replace("{stubborn}", str(stubborn)).replace("{detached}", str(detached))
    process = ServerProcess(python(code), tmp_path / "log")
    wait_for(lambda: "child" in process.tail())
    child = int(process.tail().split("child ")[1].split()[0])
    process.stop()
    assert process.exit_status == -signal.SIGTERM
    assert has_ended(child)


def test_a_server_and_its_children_run_on_the_chosen_cores(tmp_path):
    core = min(os.sched_getaffinity(0))
    child = "import os; print(os.sched_getaffinity(0))"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = ServerProcess(python(code), tmp_path / "log", cores=[core])
    wait_for(lambda: not process.alive())
    process.stop()
    assert process.tail() == str({core})


def test_variables_of_the_server_can_be_set_and_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("FGBENCH_TEST_OLD", "1")
    code = "import os; print(os.environ.get('FGBENCH_TEST_OLD'), os.environ['FGBENCH_TEST_NEW'])"
    environment = {"FGBENCH_TEST_OLD": None, "FGBENCH_TEST_NEW": "2"}
    process = ServerProcess(python(code), tmp_path / "log", environment=environment)
    wait_for(lambda: not process.alive())
    process.stop()
    assert process.tail() == "None 2"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.slow
def test_a_server_ends_when_its_parent_is_killed(tmp_path, number):
    parent_code = (
        "import sys, time; from pathlib import Path; from fgbench.backends.process import ServerProcess\n"
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
    assert process.ending() == "exit code 3"
    assert process.tail().splitlines()[-1] == "line 999"
    assert len(process.tail().splitlines()) < 50


def test_free_ports_are_free():
    assert 1024 <= free_port() < 65536
