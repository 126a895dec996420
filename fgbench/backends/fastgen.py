"""This suite's own server."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fgbench.backends.backend import BackendError, Report
from fgbench.backends.started import StartedServer
from fgengine.child import python_module
from fgengine.config import EngineConfig
from fgengine.extras import require_package
from fgengine.model.store import folder_of
from fgengine.preflight import check_names
from fgengine.settings import as_arguments

PREFIX = "fastgen"
DEFAULT_POLICY = EngineConfig().policy


class FastGen(StartedServer):
    """``python -m fgbench serve`` with a configuration."""

    def __init__(self, config: EngineConfig, *, port: int | None = None) -> None:
        """Raises ValueError for a configuration that no server would start with, and MissingPackage if the
        engine is not installed."""
        super().__init__(port)
        require_package("torch", "FastGen's engine")
        check_names(config)
        self.policy = config.policy
        self.model = config.model
        self.name = backend_name(PREFIX, config.policy)
        self._config = config

    @property
    def settings(self) -> dict[str, Any]:
        return settings_of(self._config)

    def command(self, port: int) -> Sequence[str]:
        address = ("--host", "127.0.0.1", "--port", str(port))
        return python_module("fgbench", "serve", *address, *as_arguments(self._config))

    def prepare(self, report: Report) -> None:
        """Pulls a catalog model that is not here yet, in a process of its own, since converting needs much
        memory."""
        config = self._config
        if config.use_dummy_weights or folder_of(config.model) is not None:
            return
        require_memory(config)
        report(f"The weights of {config.model} are not here yet: pulling them.")
        pull = python_module("fgbench", "models", "pull", config.model)
        if subprocess.run(pull, check=False).returncode != 0:
            raise BackendError(
                f"could not pull {config.model}; with --use-dummy-weights no weights are needed"
            )


def backend_name(prefix: str, policy: str) -> str:
    """``fastgen`` with the default policy, ``fastgen-fcfs`` with another."""
    return prefix if policy == DEFAULT_POLICY else f"{prefix}-{policy}"


def settings_of(config: EngineConfig) -> dict[str, Any]:
    """The server's settings by their names on the command line, as plain JSON."""
    values = dataclasses.asdict(config)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def require_memory(config: EngineConfig) -> None:
    """Raises ValueError for a model that does not fit into free memory, before it is downloaded.

    Checked in a child process, because it needs torch, which the load generator must not import.
    """
    check = subprocess.run(
        python_module("fgengine.execution.machine"),
        input=msgspec.json.encode(config, enc_hook=str),
        capture_output=True,
        check=False,
    )
    if check.returncode != 0:
        raise ValueError(check.stderr.decode("utf-8", "replace").strip())
