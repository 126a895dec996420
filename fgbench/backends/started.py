"""A server that is started here, by a command, and stopped again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from fgbench.backends.backend import BackendError, Ready, Report
from fgbench.backends.draining import DRAIN_SECONDS, wait_until_idle
from fgbench.backends.probe import ask_served, wait_until_ready
from fgbench.backends.process import ServerProcess, free_port, port_is_free
from fgbench.backends.server import Server

READY_SECONDS = 1800.0
"""Loading a large model and measuring a profile take minutes; a server that died is noticed at once."""


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

    def _start(self, log: Path, report: Report) -> Ready:
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

    def _start_new(self, log: Path, report: Report) -> Ready:
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
