"""The backend for this project's own server, FastGen."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgbench.backends.backend import BackendError, Report
from fgbench.backends.started import StartedServer
from fgengine.config import EngineConfig
from fgengine.model.catalog import shape_of
from fgengine.model.store import folder_of
from fgengine.preflight import check_names
from fgengine.settings import as_arguments

PREFIX = "fastgen"
DEFAULT_POLICY = EngineConfig().policy


class FastGen(StartedServer):
    """A server that ``python -m fgbench serve`` starts with a configuration."""

    def __init__(self, config: EngineConfig, *, port: int | None = None) -> None:
        """Raises ValueError if no server would start with ``config``."""
        super().__init__(port)
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
        serve = [sys.executable, "-m", "fgbench", "serve", "--host", "127.0.0.1", "--port", str(port)]
        return [*serve, *as_arguments(self._config)]

    def prepare(self, report: Report) -> None:
        """Download the model's weights if they are missing.

        Uses a separate process, because the conversion of weights needs much memory.
        """
        config = self._config
        if config.use_dummy_weights or folder_of(config.model) is not None:
            return
        require_memory(config)
        report(f"downloading the weights of {config.model}")
        pull = [sys.executable, "-m", "fgbench", "models", "pull", config.model]
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

    Uses a separate process, so that the load generator does not import torch.
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(_require_memory_here, config).result()


def _require_memory_here(config: EngineConfig) -> None:
    from fgengine.execution.machine import require_memory

    require_memory(config, shape_of(config.model))
