"""The backend for this project's own server, FastGen."""

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
    """A server that ``python -m fgbench serve`` starts with a configuration."""

    def __init__(self, config: EngineConfig, *, port: int | None = None) -> None:
        """Raises ValueError if no server would start with ``config``, MissingPackage without the engine."""
        super().__init__(port)
        if config.device_spec is None:
            require_package("torch", "FastGen's engine")
        check_names(config)
        self.policy = config.policy
        self.model = config.model
        self.name = backend_name(PREFIX, config.policy)
        self._config = config

    @property
    def settings(self) -> dict[str, Any]:
        """The server's settings by their names on the command line, as plain JSON."""
        return settings_of(self._config)

    def command(self, port: int) -> Sequence[str]:
        """Return the command that starts the server on this port of 127.0.0.1."""
        address = ("--host", "127.0.0.1", "--port", str(port))
        return python_module("fgbench", "serve", *address, *as_arguments(self._config))

    def prepare(self, report: Report) -> None:
        """Download the model's weights if they are missing and needed.

        Uses a separate process, because the conversion of weights needs much memory.
        """
        config = self._config
        if config.use_dummy_weights or config.device_spec or folder_of(config.model) is not None:
            return
        require_memory(config)
        report(f"downloading the weights of {config.model}")
        pull = python_module("fgbench", "models", "pull", config.model)
        if subprocess.run(pull, check=False).returncode != 0:
            raise BackendError(
                f"could not download the weights of {config.model}: try again, or use --use-dummy-weights"
            )


def backend_name(prefix: str, policy: str) -> str:
    """Return ``fastgen`` for the default policy, ``fastgen-fcfs`` for the policy fcfs."""
    return prefix if policy == DEFAULT_POLICY else f"{prefix}-{policy}"


def settings_of(config: EngineConfig) -> dict[str, Any]:
    """Return the server's settings by their names on the command line, as plain JSON."""
    values = dataclasses.asdict(config)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def require_memory(config: EngineConfig) -> None:
    """Raise ValueError if the model does not fit into free memory. Call it before downloading the model.

    Uses a child process, because the check needs torch, which the load generator must not import.
    """
    check = subprocess.run(
        python_module("fgengine.execution.machine"),
        input=msgspec.json.encode(config, enc_hook=str),
        capture_output=True,
        check=False,
    )
    if check.returncode != 0:
        raise ValueError(check.stderr.decode("utf-8", "replace").strip())
