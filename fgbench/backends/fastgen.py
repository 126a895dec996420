"""The backend for this project's own server, FastGen."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from fgbench.backends.backend import BackendError, Report
from fgbench.backends.started import StartedServer
from fgbench.spec.backend import FASTGEN, backend_name
from fgengine.child import python_module
from fgengine.config import EngineConfig
from fgengine.extras import require_package
from fgengine.model.store import folder_of
from fgengine.preflight import check_names
from fgengine.settings import as_arguments

_THREADS = re.compile(r"computing with (\d+) thread")


class FastGen(StartedServer):
    """A server that ``python -m fgbench serve`` starts with a configuration."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        port: int | None = None,
        cores: Sequence[int] | None = None,
        name: str | None = None,
    ) -> None:
        """``name``: name in tables; None: ``fastgen`` or ``fastgen-POLICY``.

        Raises ValueError if no server would start with ``config``, MissingPackage without the engine.
        """
        super().__init__(port, cores)
        if config.device_spec is None:
            require_package("torch", "FastGen's engine")
        check_names(config)
        self.policy = config.policy
        self.model = config.model
        self.name = name or backend_name(FASTGEN, config.policy)
        self._config = config

    @property
    def settings(self) -> dict[str, Any]:
        """The server's settings by their names on the command line, as plain JSON."""
        return settings_of(self._config) | self.core_settings

    def command(self, port: int) -> Sequence[str]:
        """Return the command that starts the server on this port of 127.0.0.1."""
        options = [
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--drain-timeout", "0"),  # its requests are those of a load that has ended
            *("--log-level", "warning"),  # so the log's last lines say what happened to the server
        ]
        return python_module("fgbench", "serve", *options, *as_arguments(self._config))

    def facts(self, log: str) -> dict[str, Any]:
        """Return the version, and the number of its threads on a CPU."""
        threads = _THREADS.findall(log)
        return {"version": version("fgbench")} | ({"threads": int(threads[-1])} if threads else {})

    def prepare(self, report: Report) -> None:
        """Download the model's weights if they are missing and needed."""
        config = self._config
        if config.use_dummy_weights or config.device_spec or folder_of(config.model) is not None:
            return
        require_memory(config)
        pull_model(config.model, report)


def pull_model(model: str, report: Report) -> None:
    """Download a catalog model's weights in another process, because converting them needs much memory.

    Raises BackendError if that fails.
    """
    report(f"downloading the weights of {model}")
    pull = python_module("fgbench", "models", "pull", model)
    if subprocess.run(pull, check=False).returncode != 0:
        raise BackendError(
            f"could not download the weights of {model}: try again, or use --use-dummy-weights"
        )


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
