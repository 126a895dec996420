"""The base class of backends that start a server by a command and stop it."""

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
"""The signals to send, each with the seconds to wait for the server to end."""
TAIL_LINES = 15
TAIL_BYTES = 16 * 1024
READY_SECONDS = 1800.0
"""Long, because loading a large model and measuring a profile take minutes. A dead server ends the wait."""


class ServerProcess:
    """A server process. The constructor starts it; the caller must call ``stop`` in every case.

    It has its own session, so that Ctrl-C in the terminal does not reach it: only the client stops it.
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
        """Process id of the server."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """Exit code; None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def tail(self) -> str:
        """Return the last lines of the log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-TAIL_LINES:])

    def stop(self) -> None:
        """Stop the server with increasingly strong signals; at the end kill its process group."""
        try:
            for number, seconds in STOP_STEPS:
                if not self.alive():
                    break
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(seconds)
        finally:  # also if a second Ctrl-C interrupts the wait
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10.0)


def port_is_free(port: int) -> bool:
    """Whether a server can listen on this port of 127.0.0.1 now."""
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 on which no process listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class StartedServer(Server):
    """A server that is started on ``port`` of 127.0.0.1, or on a free port."""

    def __init__(self, port: int | None = None) -> None:
        self._port = port
        self._process: ServerProcess | None = None
        self._shared_log: Path | None = None

    @abstractmethod
    def command(self, port: int) -> Sequence[str]:
        """Return the command that starts the server on this port of 127.0.0.1."""

    def share(self, log: Path) -> None:
        """Use one server, which logs to ``log``, for all further runs until ``close``."""
        self._shared_log = log

    def alive(self) -> bool:
        """Whether the server process runs."""
        return self._process is not None and self._process.alive()

    def log_tail(self) -> str:
        """Return the last lines of the server's log; empty if no server was started."""
        return self._process.tail() if self._process else ""

    def stop(self) -> None:
        """Stop the server, unless runs share it."""
        if self._shared_log is None:
            self.close()

    def close(self) -> None:
        """Stop the server, also a shared one."""
        process, self._process = self._process, None
        if process is not None:
            process.stop()

    def _start(self, log: Path, report: Report) -> ReadyServer:
        """Reuse a shared server when it is idle. Start a new server if it died or does not become idle."""
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
        if not port_is_free(port):  # otherwise another server would be measured
            raise BackendError(
                f"port {port} is in use: choose another --port, or measure the server there with --url"
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
