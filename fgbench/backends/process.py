"""A server's process: started in a group of its own, logged to a file, and never left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

STOP_STEPS = ((signal.SIGINT, 8.0), (signal.SIGTERM, 4.0), (signal.SIGKILL, 10.0))
"""What is sent, and for how many seconds it is given to work."""
TAIL_LINES = 15
TAIL_BYTES = 16 * 1024


class ServerProcess:
    """Started when made. The caller must call ``stop``, whatever happens.

    The group keeps the terminal's Ctrl-C away from the server: the client decides when it stops.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        tether = [sys.executable, "-m", "fgbench.backends.tether", str(os.getpid())]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*tether, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def tail(self) -> str:
        """The last lines of the log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-TAIL_LINES:])

    def stop(self) -> None:
        """Ask, then insist, then kill; afterwards nothing of its group is left."""
        try:
            for number, seconds in STOP_STEPS:
                if not self.alive():
                    break
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(seconds)
        finally:  # also when a second Ctrl-C cuts the waiting short
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10.0)


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 right now."""
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
