"""This suite's own server, started for one run and stopped after it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from fgbench.backends.backend import BackendError, Report, Served
from fgbench.backends.probe import ask_served, wait_until_ready
from fgbench.backends.process import ServerProcess, free_port, port_is_free
from fgengine.config import EngineConfig
from fgengine.preflight import check_names
from fgengine.settings import as_arguments

PREFIX = "fastgen"
SIMULATED = "simulated"
DEFAULT_POLICY = EngineConfig().policy
READY_SECONDS = 1800.0
"""Loading a large model and measuring a profile take minutes; a server that died is noticed at once."""


class FastGen:
    """``python -m fgbench serve`` with the given options, on a free port of 127.0.0.1 unless told one."""

    def __init__(self, config: EngineConfig, *, port: int | None = None) -> None:
        """Raises ValueError for a configuration that no server would start with."""
        check_names(config)
        self.policy = config.policy
        self.model = config.model
        self.name = PREFIX if self.policy == DEFAULT_POLICY else f"{PREFIX}-{self.policy}"
        self._config = config
        self._port = port
        self._process: ServerProcess | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return settings_of(self._config)

    def start(self, log: Path, report: Report) -> Served:
        port = free_port() if self._port is None else self._port
        if not port_is_free(port):  # else whoever is there would be measured
            raise BackendError(
                f"port {port} is taken; choose another --port, or measure what is there by --url"
            )
        serve = [sys.executable, "-m", "fgbench", "serve", "--host", "127.0.0.1", "--port", str(port)]
        report(f"starting {self.name} with {self.model}")
        self._process = ServerProcess([*serve, *as_arguments(self._config)], log)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(url, timeout=READY_SECONDS, report=report, alive=self._process.alive)
            return ask_served(url)
        except BackendError as error:
            words = self.last_words()
            self.stop()
            raise BackendError(f"{error}; its log ends:\n{words}" if words else str(error)) from None
        except BaseException:
            self.stop()
            raise

    def alive(self) -> bool:
        return self._process is not None and self._process.alive()

    def last_words(self) -> str:
        return self._process.tail() if self._process else ""

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.stop()


def settings_of(config: EngineConfig) -> dict[str, Any]:
    """The server's settings by their names on the command line, as plain JSON."""
    values = dataclasses.asdict(config)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def policy_of(backend: str) -> str | None:
    """The policy in a backend's name: ``fcfs`` of ``fastgen-fcfs``; None of ``fastgen``, which has none.

    Raises ValueError for a name that is neither FastGen's nor a simulation's.
    """
    if backend in (PREFIX, SIMULATED):
        return None
    prefix, dash, policy = backend.partition("-")
    if prefix not in (PREFIX, SIMULATED) or not dash or not policy:
        raise ValueError(
            f"there is no backend {backend!r}; there are fastgen, fastgen-fcfs, fastgen-mlfq, fastgen-srpt "
            "(fastgen-POLICY), simulated (simulated-POLICY), and any server by --url"
        )
    return policy
