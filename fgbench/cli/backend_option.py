"""Parses ``--backend``: a backend's name, URL or command, followed by options for that backend only."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import typer

from fgbench.cli.flags import Command, given, takes_options
from fgbench.spec.backend import BackendSpec, applicable, kind_of, name_and_command, name_and_url
from fgbench.spec.start import StartSpec
from fgbench.spec.sweep import Settings
from fgengine.config import EngineConfig
from fgengine.settings import changed, described

MAX_CHARACTERS = 2_000
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""click's UsageError. Taken from typer, because typer may contain its own copy of click."""


def backend_specs(settings: Settings) -> dict[str, BackendSpec]:
    """Return the backends of a sweep, by label.

    Raises ValueError if one cannot be parsed, or if two have the same label.
    """
    specs: dict[str, BackendSpec] = {}
    for text in settings.sweep.backend:
        spec = parse_backend(text, settings.server, settings.start, given=settings.given)
        if spec.label in specs:
            raise ValueError(f"--backend {spec.label} is given twice: leave one out")
        specs[spec.label] = spec
    return specs


def parse_backend(
    text: str, server: EngineConfig, start: StartSpec | None = None, *, given: Collection[str] = ()
) -> BackendSpec:
    """Parse a backend's name, a URL, NAME=URL, or NAME=command: COMMAND.

    After a name or a URL come options for that backend only. ``fastgen-sprpt --predictor learned`` is the
    backend fastgen-sprpt with the settings of ``server``, except for the predictor. ``server`` does not apply
    to a server at a URL. After ``vllm``, options that fgbench does not have are vLLM's own.

    Args:
        start: How servers are started; the options that the backend does not have are left out.
        given: Names of the ``server`` options that the user gave for all backends.

    Raises:
        ValueError: ``text`` cannot be parsed. The message gives the reason.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"--backend has {len(text)} characters: use at most {MAX_CHARACTERS}")
    start = start or StartSpec()
    if (command := name_and_command(text)) is not None:
        name, words = command
        return BackendSpec(name=name, command=words, server=server, start=applicable(start, "command"))
    try:
        words_of_text = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"--backend {text!r} cannot be read: {error}") from None
    if not words_of_text:
        raise ValueError("--backend is empty: give a name, such as fastgen-fcfs, or NAME=http://host:port")
    name, url = name_and_url(words_of_text[0])
    kind = kind_of(name, url)
    own, own_start, rest = _own_options(words_of_text[1:], text, passes_others=kind == "vllm")
    return BackendSpec(
        name=name,
        url=url,
        server=replace(EngineConfig() if url is not None else server, **own),
        start=replace(applicable(start, kind), **own_start),
        arguments=tuple(rest),
        given=frozenset({*given, *changed(server), *own}),
        own=frozenset(own),
        label=shlex.join(words_of_text),
        policy_given="policy" in own,
    )


def _own_options(
    arguments: list[str], text: str, *, passes_others: bool
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return the given options of the server and of its start by name, and the remaining arguments.

    They are parsed as a verb parses them. Arguments remain only if ``passes_others``.
    """

    @takes_options
    def backend(server: EngineConfig, start: StartSpec) -> None: ...

    app = typer.Typer(add_completion=False)
    others = {"ignore_unknown_options": True, "allow_extra_args": True} if passes_others else {}
    app.command(add_help_option=False, cls=Command, context_settings=others)(backend)
    command = typer.main.get_command(app)
    try:
        with command.make_context("--backend", arguments) as context:
            found = {name: context.params[name] for name in given(context)}
            rest = list(context.args)
    except (USAGE_ERROR, ValueError) as error:
        raise ValueError(f"--backend {text!r}: {getattr(error, 'message', error)}") from None
    names = {one.name for one in described(StartSpec)}
    own = {name: value for name, value in found.items() if name not in names}
    return own, {name: value for name, value in found.items() if name in names}, rest
