"""A server's process: started with its own session, cores and log, and stopped with all its children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from fgbench.backends import die_with_parent

STOP_SECONDS = 12.0
"""Seconds that a server has to end after SIGTERM."""
GROUP_SECONDS = 3.0
"""Seconds that its remaining children have to end after SIGTERM, before SIGKILL."""
KILL_SECONDS = 10.0
"""Seconds to wait for processes to end after SIGKILL."""
POLL_SECONDS = 0.02
TAIL_LINES = 15
TAIL_BYTES = 16 * 1024


class ServerProcess:
    """A server process. The constructor starts it; the caller must call ``stop`` in every case.

    It has its own session, so that Ctrl-C in the terminal does not reach it: only the client stops it. It
    ends when this process ends.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        cores: Sequence[int] | None = None,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        """Start the command.

        Args:
            log: File to which its output is appended.
            cores: Cores that it may use; None: those of this process.
            environment: Variables that differ from this process's; None removes a variable.
        """
        self.log = log
        changed = {"PYTHONUNBUFFERED": "1", **(environment or {})}
        merged = {**os.environ, **changed}
        wrapper = [sys.executable, "-I", die_with_parent.__file__, str(os.getpid())]
        pinned = ",".join(map(str, cores)) if cores is not None else die_with_parent.ALL_CORES
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*wrapper, pinned, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={name: value for name, value in merged.items() if value is not None},
            )

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """Exit code; None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def ending(self) -> str:
        """Return how the process ended: ``exit code 1`` or ``SIGKILL``; empty while it runs."""
        status = self.exit_status
        if status is None:
            return ""
        try:
            return f"exit code {status}" if status >= 0 else signal.Signals(-status).name
        except ValueError:
            return f"signal {-status}"

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Return the last lines of the log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def stop(self) -> None:
        """Stop the server and all its children, also orphaned ones.

        The server gets SIGTERM first and can stop its own children. What remains gets SIGTERM, then SIGKILL.
        """
        children = _children(self.pid)
        try:
            if self.alive():
                self._process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(STOP_SECONDS)
            if not self.alive() and (left := self._left(children)):
                _signal(left, signal.SIGTERM)
                self._wait(children, GROUP_SECONDS)
        finally:  # also if a second Ctrl-C interrupts the wait
            _signal(self._left(children), signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(KILL_SECONDS)
            self._wait(children, KILL_SECONDS)

    def _wait(self, children: Sequence[psutil.Process], seconds: float) -> None:
        """Wait until no process of the server is left, at most this long."""
        deadline = time.monotonic() + seconds
        while self._left(children) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _left(self, children: Sequence[psutil.Process]) -> list[int]:
        """Return the running processes of the server: its session, and ``children`` that left the session."""
        found = {child.pid for child in children if child.is_running() and not _is_zombie(child.pid)}
        for pid in psutil.pids():
            with contextlib.suppress(OSError):
                if os.getsid(pid) == self.pid and not _is_zombie(pid):
                    found.add(pid)
        return sorted(found)


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _is_zombie(pid: int) -> bool:
    """Whether the process has ended and only waits for its parent to notice."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
