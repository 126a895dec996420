"""The backends ``vllm`` and ``vllm-chunked``: a vLLM that fgbench starts."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fgbench.backends.backend import BackendError, Report
from fgbench.backends.fastgen import pull_model
from fgbench.backends.started import StartedServer, command_line
from fgbench.backends.vllm_install import Installed, find_vllm, options_of, own_variables, server_command
from fgbench.backends.vllm_options import (
    BIND,
    KV_SPACE,
    PRELOAD,
    choose,
    in_effect,
    parse_passed,
    refuse_others,
    written,
)
from fgbench.spec.backend import VLLM, VLLM_CHUNKED
from fgbench.spec.cores import cores_text
from fgbench.spec.start import StartSpec
from fgengine.config import EngineConfig
from fgengine.kv.sizing import block_bytes
from fgengine.model.catalog import shape_of
from fgengine.model.files import ModelError
from fgengine.model.shape import ModelShape
from fgengine.model.store import dummy_folder, folder_of

SECRET_WORDS = ("KEY", "TOKEN", "SECRET", "PASSWORD")


class Vllm(StartedServer):
    """A vLLM server with its OpenAI-compatible API, on this machine."""

    def __init__(
        self,
        server: EngineConfig,
        *,
        chunked: bool = False,
        start: StartSpec | None = None,
        given: Collection[str] = (),
        own: Collection[str] = (),
        passed: Sequence[str] = (),
        port: int | None = None,
        name: str | None = None,
    ) -> None:
        """Find vLLM and choose its options. Does not import or start it.

        Args:
            server: Our settings; those in ``given`` are translated.
            chunked: Whether prefill is chunked: ``vllm-chunked``.
            start: Preset, Python and cores.
            given: Names of our options that the user gave, for any backend.
            own: Those of them that are for this backend alone; all must mean something for vLLM.
            passed: vLLM's own options, as words of a command line.
            port: Port to use; None: any free one.
            name: Name in tables; None: ``vllm`` or ``vllm-chunked``.

        Raises:
            ValueError: vLLM is not installed, an option means nothing for it, or a core does not exist.
        """
        start = start or StartSpec()
        super().__init__(port, start.core_numbers)
        kind = VLLM_CHUNKED if chunked else VLLM
        self.name = name or kind
        self.model = server.model
        refuse_others(own, kind)
        self._vllm = find_vllm(start.vllm_python)
        self._preset = start.vllm_preset
        self._tokenizer = server.tokenizer if "tokenizer" in given else None
        shape = _shape(server.model)
        self._wanted = choose(
            start.vllm_preset,
            server,
            chunked=chunked,
            given=given,
            passed=parse_passed(passed),
            build=self._vllm.build,
            cores=self.cores,
            max_position=shape.max_position if shape else None,
            block_bytes=block_bytes(shape, server.block_size, 2) if shape else None,
            environ=os.environ,
            libraries=self._vllm.libraries,
            own=own,
        )

    @property
    def installed(self) -> Installed:
        """The vLLM that is used."""
        return self._vllm

    @property
    def settings(self) -> dict[str, Any]:
        """Preset, version, build, vLLM's options, its environment variables and its cores, as plain JSON."""
        return {
            "preset": self._preset,
            "version": self._vllm.version,
            "build": self._vllm.build,
            **self._wanted.options,
            **({"tokenizer": self._tokenizer} if self._tokenizer else {}),
            **self._wanted.environment,
            **(
                {"preload": [Path(name).name for name in preload]}
                if (preload := self._wanted.preload)
                else {}
            ),
            **self.core_settings,
        }

    def prepare(self, report: Report) -> None:
        """Download the model if it is missing, and check the options against this version's help."""
        if self._folder is None:
            pull_model(self.model or "", report)
        options_of(self._vllm, report)
        _ = self._options

    def command(self, port: int) -> Sequence[str]:
        """Return the command that starts the server on this port of 127.0.0.1."""
        address = ("--host", "127.0.0.1", "--port", str(port))
        return server_command(self._vllm, *address, *self._model(), *self._options[0])

    def environment(self) -> Mapping[str, str | None]:
        """Return the server's environment variables that differ from ours; None removes a variable."""
        preload = {PRELOAD: ":".join(self._wanted.preload)} if self._wanted.preload else {}
        return own_variables(self._vllm.python) | self._wanted.environment | preload

    def describe_start(self, command: Sequence[str], environment: Mapping[str, str | None]) -> list[str]:
        """Return sentences about the version, the preset, the threads and the command."""
        sentences = [f"{self._vllm} in {self._vllm.python}, preset {self._preset}"]
        variables = self._wanted.environment
        if (threads := variables.get(BIND)) is not None:
            bound = f"cores {threads}" if threads == cores_text(self.cores) else f"{BIND}={threads}"
            cache = f"{variables[KV_SPACE]} GiB" if KV_SPACE in variables else "as vLLM decides"
            sentences.append(f"its threads: {bound}; its KV cache: {cache}")
        return [*sentences, f"command: {command_line(command, environment)}", *self._options[1]]

    def facts(self, log: str) -> dict[str, Any]:
        """Return version, build, what the log says is in effect, inherited variables, and notes."""
        version = f"vLLM {self._vllm.version}"
        found, notes = in_effect(log, self._wanted, version)
        computes, may_use = found.get("compute_cores"), cores_text(self.cores)
        if computes is not None and computes != may_use:
            notes.append(f"{version} computes on core {computes} only, although it may use cores {may_use}")
        return {
            "version": self._vllm.version,
            "build": self._vllm.build,
            "inherited_environment": _inherited(self.environment()),
            "in_effect": found,
            "notes": [*self._options[1], *notes],
        }

    @property
    def _folder(self) -> Path | None:
        """The model's folder, which needs no weights if they are dummies; None: it must be downloaded."""
        model = self.model or ""
        folder = folder_of(model)
        if folder is None and self._wanted.options.get("load_format") == "dummy":
            return dummy_folder(model)
        return folder

    def _model(self) -> list[str]:
        folder = self._folder
        if folder is None:
            raise _missing("weights", str(self.model))
        is_named = "served_model_name" in self._wanted.options
        named = [] if is_named else ["--served-model-name", str(self.model)]
        return ["--model", str(folder), *named, *self._tokenizer_arguments()]

    def _tokenizer_arguments(self) -> list[str]:
        if self._tokenizer is None:
            return []
        folder = folder_of(self._tokenizer)
        if folder is None:
            raise _missing("tokenizer", self._tokenizer)
        return ["--tokenizer", str(folder)]

    @functools.cached_property
    def _options(self) -> tuple[list[str], list[str]]:
        """The arguments for this version, and sentences about what it cannot do. Asks for its help once."""
        try:
            return written(self._wanted, options_of(self._vllm), f"vLLM {self._vllm.version}")
        except ValueError as error:
            raise BackendError(str(error)) from None


def _missing(what: str, model: str) -> BackendError:
    return BackendError(f"the {what} of {model} is not here: run `fgbench models pull {model}`")


def _shape(model: str) -> ModelShape | None:
    """Return the model's shape; None for a folder of a family that our engine does not support."""
    try:
        return shape_of(model)
    except ModelError:
        if folder_of(model) is None:  # raises for an unknown name
            raise
        return None


def _inherited(changed: Mapping[str, str | None]) -> dict[str, str]:
    """Return our environment variables that affect vLLM and are passed on, without secret ones."""
    prefixes = ("VLLM_", "OMP_", "KMP_", "CUDA_VISIBLE", "LD_PRELOAD")
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(prefixes)
        and name not in changed
        and not any(word in name.upper() for word in SECRET_WORDS)
    }
