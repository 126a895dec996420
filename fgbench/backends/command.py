"""A backend for any other server, which is started by a command line that the user gives."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgbench.backends.backend import ReadyServer, Report
from fgbench.backends.fastgen import pull_model
from fgbench.backends.started import StartedServer, command_line
from fgengine.model.catalog import CATALOG
from fgengine.model.store import folder_of

PLACEHOLDERS = ("model", "port")
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{([A-Za-z_]\w*)\}")


class Command(StartedServer):
    """A server with an OpenAI-compatible API that a command starts on this machine."""

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        *,
        model: str,
        cores: Sequence[int] | None = None,
        port: int | None = None,
    ) -> None:
        """Check the command.

        Args:
            name: Name in tables.
            words: The program and its arguments. ``{model}`` and ``{port}`` are filled in; ``{{model}}`` is
                written as ``{model}``.
            model: A catalog name, a Hugging Face folder, or any name that the server knows.
            cores: Cores that the server may use; None: those of this process.
            port: Port to use; None: any free one. Then the command must have ``{port}``.

        Raises:
            ValueError: there is no such program, or the command has a placeholder that does not exist.
        """
        super().__init__(port, cores)
        self.name = name
        self.model = model
        self._words = tuple(words)
        used = {match[2] for word in words for match in _PLACEHOLDER.finditer(word) if match[2]}
        for unknown in sorted(used - set(PLACEHOLDERS)):
            raise ValueError(
                f"--backend {name}: {{{unknown}}} is no placeholder: use {{model}} and {{port}}, or write "
                f"{{{{{unknown}}}}} for the text itself"
            )
        if port is None and "port" not in used:
            raise ValueError(
                f"--backend {name}: the command has no {{port}}: put it where the server gets its port"
            )
        self._uses_model = "model" in used
        self._program = _program(name, words[0] if words else "")

    @property
    def settings(self) -> dict[str, Any]:
        """The command with its placeholders, and the chosen cores, as plain JSON."""
        return {"command": shlex.join(self._words), **self.core_settings}

    def prepare(self, report: Report) -> None:
        """Download the model if the command uses it, the catalog has it and its weights are missing."""
        model = self.model or ""
        if self._uses_model and model.lower() in CATALOG and folder_of(model) is None:
            pull_model(model, report)

    def command(self, port: int) -> Sequence[str]:
        """Return the command that starts the server on this port of 127.0.0.1."""
        values = {"model": self._model_path(), "port": str(port)}

        def fill(match: re.Match[str]) -> str:
            return f"{{{match[1]}}}" if match[1] else values[match[2]]

        return [self._program, *(_PLACEHOLDER.sub(fill, word) for word in self._words[1:])]

    def _start_new(self, log: Path, report: Report) -> ReadyServer:
        """Start the server. Tables show our name of the model, whatever the server calls it."""
        return replace(super()._start_new(log, report), shown_model=self.model or "")

    def describe_start(self, command: Sequence[str], environment: Mapping[str, str | None]) -> list[str]:
        """Return the command."""
        return [f"command: {command_line(command, environment)}"]

    def _model_path(self) -> str:
        """Return the folder of a model that is here, else its name as the user gave it."""
        model = self.model or ""
        if model.lower() in CATALOG:
            return str(folder_of(model) or model)
        expanded = os.path.expanduser(model)
        return os.path.abspath(expanded) if os.path.exists(expanded) else model


def _program(name: str, word: str) -> str:
    """Return the path of a program. Raises ValueError if it cannot be run."""
    found = shutil.which(os.path.expanduser(word)) if word else None
    if found is None:
        raise ValueError(
            f"--backend {name}: there is no program {word!r}: give its path, or install it. Variables are "
            "set with env: NAME=command: env A=1 PROGRAM ..."
        )
    return os.path.abspath(found)
