"""A server that is started here, by a command, and stopped again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from fgbench.backends.backend import BackendError, ReadyServer, Report
from fgbench.backends.probe import DRAIN_SECONDS, ask_served, wait_until_idle, wait_until_ready
from fgbench.backends.server import Server
from fgengine.child import python_module

STOP_STEPS = ((signal.SIGINT, 8.0), (signal.SIGTERM, 4.0), (signal.SIGKILL, 10.0))
"""What is sent, and for how many seconds it is given to work."""
TAIL_LINES = 15
TAIL_BYTES = 16 * 1024
READY_SECONDS = 1800.0
"""Loading a large model and measuring a profile take minutes; a server that died is noticed at once."""


class ServerProcess:
    """Started when made. The caller must call ``stop``, whatever happens.

    The group keeps the terminal's Ctrl-C away from the server: the client decides when it stops.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        wrapper = python_module("fgbench.backends.die_with_parent", str(os.getpid()))
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*wrapper, *command],
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


class StartedServer(Server):
    """On a free port of 127.0.0.1 unless one is given."""

    def __init__(self, port: int | None = None) -> None:
        self._port = port
        self._process: ServerProcess | None = None
        self._shared_log: Path | None = None

    @abstractmethod
    def command(self, port: int) -> Sequence[str]:
        """That starts the server on this port of 127.0.0.1."""

    def share(self, log: Path) -> None:
        self._shared_log = log

    def alive(self) -> bool:
        return self._process is not None and self._process.alive()

    def log_tail(self) -> str:
        return self._process.tail() if self._process else ""

    def stop(self) -> None:
        if self._shared_log is None:
            self.close()

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    def _start(self, log: Path, report: Report) -> ReadyServer:
        """A shared server that runs is taken again once no request is left at it; one that has died or does
        not become idle is started again."""
        if self._shared_log is not None and self._ready is not None and self.alive():
            try:
                wait_until_idle(self._ready.url, timeout=DRAIN_SECONDS, report=report, alive=self.alive)
                return self._ready
            except BackendError as error:
                report(f"{error}: starting a new server")
        self.close()
        return self._start_new(self._shared_log or log, report)

    def _start_new(self, log: Path, report: Report) -> ReadyServer:
        port = free_port() if self._port is None else self._port
        if not port_is_free(port):  # else another server would be measured
            raise BackendError(
                f"port {port} is taken; choose another --port, or measure what is there by --url"
            )
        report(f"starting {self.name} with {self.model}")
        self._process = ServerProcess(self.command(port), log)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(url, timeout=READY_SECONDS, report=report, alive=self.alive)
            return ask_served(url)
        except BackendError as error:
            tail = self.log_tail()
            self.close()
            raise BackendError(f"{error}; its log ends:\n{tail}" if tail else str(error)) from None
        except BaseException:
            self.close()
            raise
