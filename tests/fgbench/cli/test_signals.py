"""Signals that arrive while the program still imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow


@contextmanager
def importing(module: str, verb: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start the program; it stays in the import of a module."""
    (folder / f"{module}.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, "-m", "fgbench", verb],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("verb", "number", "code", "says"),
    [
        ("serve", signal.SIGTERM, 0, "fgbench serve: stopping\n"),
        ("serve", signal.SIGHUP, 0, "fgbench serve: stopping\n"),
        ("serve", signal.SIGINT, 130, "fgbench serve: stopping\n"),
        ("results", signal.SIGTERM, 130, ""),
        ("results", signal.SIGINT, 130, ""),
    ],
)
def test_a_signal_before_the_verb_is_known(
    verb: str, number: signal.Signals, code: int, says: str, tmp_path: Path
) -> None:
    with importing("typer", verb, tmp_path) as process:
        process.send_signal(number)
        assert (process.communicate(timeout=20)[0], process.returncode) == (says, code)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_while_the_server_is_imported(number: signal.Signals, code: int, tmp_path: Path) -> None:
    with importing("aiohttp", "serve", tmp_path) as process:
        process.send_signal(number)
        assert (process.communicate(timeout=20)[0], process.returncode) == ("fgbench serve: stopping\n", code)


def test_after_nohup_the_hangup_is_still_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with importing("typer", "serve", tmp_path) as process:
            process.send_signal(signal.SIGHUP)
            time.sleep(0.2)
            assert process.poll() is None
    finally:
        signal.signal(signal.SIGHUP, before)
