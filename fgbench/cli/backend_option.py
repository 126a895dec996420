"""Reads ``--backend``: a backend's name or URL, with options of its own behind it."""

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
"""click's, which typer may carry a copy of."""


def backend_specs(settings: Settings) -> dict[str, BackendSpec]:
    """The backends of a sweep, by label. Raises ValueError for one that cannot be read, and for two that are
    one."""
    specs: dict[str, BackendSpec] = {}
    for text in settings.sweep.backend:
        spec = parse_backend(text, settings.server)
        if spec.label in specs:
            raise ValueError(f"--backend {spec.label} is there twice")
        specs[spec.label] = spec
    return specs


def parse_backend(text: str, server: EngineConfig) -> BackendSpec:
    """A backend's name, a URL, or NAME=URL, with options of its own behind it.

    ``fastgen-sprpt --predictor learned`` is the backend fastgen-sprpt, set like ``server`` but for the
    predictor. Nothing of ``server`` is for a server at a URL.

    Raises:
        ValueError: it cannot be read so; says why.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"--backend takes at most {MAX_CHARACTERS} characters, not {len(text)}")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"--backend {text!r} cannot be read: {error}") from None
    if not words:
        raise ValueError("--backend needs a name, such as fastgen-fcfs, or NAME=http://host:port")
    name, url = name_and_url(words[0])
    own = _own_options(words[1:], text)
    config = replace(EngineConfig() if url is not None else server, **own)
    return BackendSpec(
        name=name, url=url, server=config, label=shlex.join(words), policy_given="policy" in own
    )


def _own_options(arguments: list[str], text: str) -> dict[str, Any]:
    """By name, read as a verb reads them."""

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
