"""Parses ``--backend``: a backend's name or URL, followed by options for that backend only."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import typer

from fgbench.cli.flags import Command, given, takes_options
from fgbench.spec.backend import BackendSpec, name_and_url
from fgbench.spec.sweep import Settings
from fgengine.config import EngineConfig

MAX_CHARACTERS = 2_000
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""click's UsageError. Taken from typer, because typer may contain its own copy of click."""


def backend_specs(settings: Settings) -> dict[str, BackendSpec]:
    """Return the backends of a sweep, by label.

    Raises ValueError if one cannot be parsed, or if two have the same label.
    """
    specs: dict[str, BackendSpec] = {}
    for text in settings.sweep.backend:
        spec = parse_backend(text, settings.server)
        if spec.label in specs:
            raise ValueError(f"--backend {spec.label} is given twice: leave one out")
        specs[spec.label] = spec
    return specs


def parse_backend(text: str, server: EngineConfig) -> BackendSpec:
    """Parse a backend's name, a URL, or NAME=URL, followed by options for that backend only.

    ``fastgen-sprpt --predictor learned`` is the backend fastgen-sprpt with the settings of ``server``, except
    for the predictor. ``server`` does not apply to a server at a URL.

    Raises:
        ValueError: ``text`` cannot be parsed. The message gives the reason.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"--backend has {len(text)} characters: use at most {MAX_CHARACTERS}")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"--backend {text!r} cannot be read: {error}") from None
    if not words:
        raise ValueError("--backend is empty: give a name, such as fastgen-fcfs, or NAME=http://host:port")
    name, url = name_and_url(words[0])
    own = _own_options(words[1:], text)
    config = replace(EngineConfig() if url is not None else server, **own)
    return BackendSpec(
        name=name, url=url, server=config, label=shlex.join(words), policy_given="policy" in own
    )


def _own_options(arguments: list[str], text: str) -> dict[str, Any]:
    """Return the given options by name, parsed as a verb parses them."""

    @takes_options
    def backend(server: EngineConfig) -> None: ...

    app = typer.Typer(add_completion=False)
    app.command(add_help_option=False, cls=Command)(backend)
    command = typer.main.get_command(app)
    try:
        with command.make_context("--backend", arguments) as context:
            return {name: context.params[name] for name in given(context)}
    except (USAGE_ERROR, ValueError) as error:
        raise ValueError(f"--backend {text!r}: {getattr(error, 'message', error)}") from None
