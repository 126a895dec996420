"""The base class of backends that start a server by a command and stop it."""

from __future__ import annotations

import contextlib
import re
import shlex
import socket
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgbench.backends.affinity import check_cores, own_cores
from fgbench.backends.backend import BackendError, Passing, ReadyServer, Report
from fgbench.backends.probe import DRAIN_SECONDS, ask_served, ask_with, wait_until_idle, wait_until_ready
from fgbench.backends.process import ServerProcess
from fgbench.backends.server import Server
from fgbench.spec.access import OPEN
from fgbench.spec.cores import cores_text

READY_SECONDS = 1800.0
"""Long, because loading a large model and measuring a profile take minutes. A dead server ends the wait."""
FOLLOW_SECONDS = 1.0
"""Seconds between two readings of the log of a server that starts."""
_PREFIX = re.compile(
    r"^(?:\([^()]*pid=\d+\)\s*)?"
    r"(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\s+[\d-]+ [\d:.,]+\s+(?:\[[^\]]*\]\s*)?)?"
)
"""What logging puts before a message: ``(EngineCore pid=12) INFO 11-26 06:00:00 [core.py:110] ``."""
_ERROR = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception): .+")
CAUSE_CHARACTERS = 1_000


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
    """A server that is started on ``port`` of 127.0.0.1, or on a free port, and pinned to ``cores``.

    A subclass implements ``command``, and more of the methods below it as it needs them.
    """

    def __init__(self, port: int | None = None, cores: Sequence[int] | None = None) -> None:
        """``cores``: None means all cores of this process. Raises ValueError if one cannot be used."""
        self._port = port
        self._process: ServerProcess | None = None
        self._shared_log: Path | None = None
        self._pinned = None if cores is None else tuple(cores)
        if cores is not None:
            check_cores(cores)

    @abstractmethod
    def command(self, port: int) -> Sequence[str]:
        """Return the command that starts the server on this port of 127.0.0.1."""

    def environment(self) -> Mapping[str, str | None]:
        """Return the server's environment variables that differ from ours; None removes a variable."""
        return {}

    def describe_start(self, command: Sequence[str], environment: Mapping[str, str | None]) -> list[str]:
        """Return sentences about the server that starts, other than its name, model and cores."""
        return []

    def facts(self, log: str) -> dict[str, Any]:
        """Return more facts about the started server for run.json, such as its version.

        ``log``: what it has written since its start.
        """
        return {}

    @property
    def cores(self) -> tuple[int, ...]:
        """Numbers of the cores that the server may use."""
        return own_cores() if self._pinned is None else self._pinned

    @property
    def core_settings(self) -> dict[str, Any]:
        """``cores`` for the settings, if the user chose them; otherwise they are a fact of the machine."""
        return {} if self._pinned is None else {"cores": cores_text(self._pinned)}

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
        report(f"starting {self.name} with {self.model} on {_cores(self.cores)}")
        command, environment = list(self.command(port)), dict(self.environment())
        sentences = self.describe_start(command, environment)
        for sentence in sentences:
            report(sentence)
        begin = log.stat().st_size if log.exists() else 0
        self._process = process = ServerProcess(command, log, cores=self._pinned, environment=environment)
        url = f"http://127.0.0.1:{port}"
        self.access = OPEN.with_own_key()
        ask_with(url, self.access)
        try:
            with _followed(process, report) as follow:
                wait_until_ready(url, timeout=READY_SECONDS, report=report, alive=self.alive, waiting=follow)
            ready = ask_served(url)
        except BackendError as error:
            ending = process.ending()
            self.close()
            why = f"{error} ({ending})" if ending else str(error)
            raise BackendError(_with_log(why, process, begin)) from None
        except BaseException:
            self.close()
            raise
        started = {
            "command": command,
            "environment": environment,
            "cores": cores_text(self.cores),
            **self.facts(_text_since(log, begin)),
        }
        for note in started.get("notes") or ():
            if note not in sentences:
                report(note)
        return replace(ready, started=started)


def command_line(command: Sequence[str], environment: Mapping[str, str | None]) -> str:
    """Return a command with its variables as a shell takes them: ``A=1 python -m server --port 8000``."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in environment.items() if value is not None]
    return " ".join([*variables, shlex.join(command)])


def _cores(cores: Sequence[int]) -> str:
    return f"{'core' if len(cores) == 1 else 'cores'} {cores_text(cores)}"


@contextlib.contextmanager
def _followed(process: ServerProcess, report: Report) -> Iterator[Callable[[], None]]:
    """Yield a function that reports the last line of the server's log, at most once a second."""
    due = time.monotonic() + FOLLOW_SECONDS

    def follow() -> None:
        nonlocal due
        if time.monotonic() < due:
            return
        due = time.monotonic() + FOLLOW_SECONDS
        lines = [line for line in process.tail().splitlines() if line.strip()]
        if lines:
            report(Passing(message_of(lines[-1])))

    try:
        yield follow
    finally:
        report(Passing(""))


def message_of(line: str) -> str:
    """Return a line of a log without the time and place that logging puts before the message."""
    return _PREFIX.sub("", line.strip(), count=1) or line.strip()


def first_error(log: str) -> str:
    """Return the first exception in a log, which is the cause of those after it; empty if there is none.

    A server of several processes, such as vLLM, ends with an exception that only refers to the first one.
    """
    messages = (message_of(line) for line in log.splitlines())
    return next((text for text in messages if _ERROR.match(text)), "")[:CAUSE_CHARACTERS]


def _with_log(error: str, process: ServerProcess, begin: int) -> str:
    """Return the error with its cause, where the log is and how it ends.

    ``begin``: size of the log at the start of the server, in bytes.
    """
    tail = process.tail()
    if not tail:
        return f"{error}; its log, {process.log}, is empty"
    cause = first_error(_text_since(process.log, begin))
    because = f": {cause}" if cause and cause not in tail else ""
    return f"{error}{because}; its log, {process.log}, ends:\n{tail}"


def _text_since(log: Path, begin: int, limit: int = 4 * 1024**2) -> str:
    """Return the text of the log from byte ``begin`` on, at most ``limit`` bytes."""
    try:
        with log.open("rb") as file:
            file.seek(begin)
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""
