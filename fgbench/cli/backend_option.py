"""Parses ``--backend``: a backend's name, URL or command, followed by options for that backend only."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import typer

from fgbench.cli.flags import Command, given, takes_options
from fgbench.spec.backend import BackendSpec, Kind, applicable, kind_of, name_and_command, read_word
from fgbench.spec.start import StartSpec
from fgbench.spec.sweep import Settings
from fgengine.config import EngineConfig
from fgengine.settings import changed, described

MAX_CHARACTERS = 2_000
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""click's UsageError. Taken from typer, because typer may contain its own copy of click."""


def backend_specs(settings: Settings) -> dict[str, BackendSpec]:
    """Return the backends of a sweep, by label.

    Raises ValueError if one cannot be parsed, or if tables could not show two under different names.
    """
    specs: dict[str, BackendSpec] = {}
    for text in settings.backends:
        spec = parse_backend(text, settings.server, settings.start, given=settings.given)
        for other in specs.values():
            _check_distinct(spec, other)
        specs[spec.label] = spec
    return specs


def _check_distinct(spec: BackendSpec, other: BackendSpec) -> None:
    """Raise ValueError if tables could not show two backends under different names.

    Two backends without a name of the user's may have the same one: tables add the options that differ.
    """
    if spec.table_name == other.table_name and (spec.is_named or other.is_named):
        raise ValueError(
            f"two backends have the name {spec.table_name}: give one of them another, such as "
            f"--backend '{spec.table_name}-2=...'"
        )
    if spec.label == other.label:
        raise ValueError(f"--backend {spec.label} is given twice: leave one out")


def parse_backend(
    text: str,
    server: EngineConfig,
    start: StartSpec | None = None,
    *,
    given: Collection[str] = (),
    alone: bool = False,
) -> BackendSpec:
    """Parse a backend's name, NAME=BACKEND, a URL, NAME=URL, or NAME=command: COMMAND.

    NAME becomes the name in tables. After a name or a URL come options for that backend only:
    ``fastgen-sprpt --predictor learned`` is the backend fastgen-sprpt with the settings of ``server``, except
    for the predictor. ``server`` does not apply to a server at a URL. After ``vllm``, options that fgbench
    does not have are vLLM's own.

    Args:
        start: How servers are started.
        given: Names of the ``server`` options that the user gave, also with their default values.
        alone: Whether it is the only backend. Then all options are for it, and must mean something for it.
            Otherwise those of ``start`` and ``given`` that it does not have are left out.

    Raises:
        ValueError: ``text`` cannot be parsed. The message gives the reason.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"--backend has {len(text)} characters: use at most {MAX_CHARACTERS}")
    start = start or StartSpec()
    of_this = frozenset(given) if alone else frozenset()

    def of_kind(kind: Kind) -> StartSpec:
        return start if alone else applicable(start, kind)

    if (command := name_and_command(text)) is not None:
        name, words = command
        return BackendSpec(
            name=name,
            command=words,
            server=server,
            start=of_kind("command"),
            given=frozenset(given),
            own=of_this,
        )
    try:
        words_of_text = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"--backend {text!r} cannot be read: {error}") from None
    if not words_of_text:
        raise ValueError("--backend is empty: give a name, such as fastgen-fcfs, or NAME=http://host:port")
    title, name, url = read_word(words_of_text[0])
    kind = kind_of(name, url)
    own, own_start, rest = _own_options(words_of_text[1:], text, passes_others=kind == "vllm")
    if url is not None:
        server = replace(EngineConfig(), **{one: getattr(server, one) for one in of_this})
    of_this |= frozenset(own)
    return BackendSpec(
        name=name,
        title=title,
        url=url,
        server=replace(server, **own),
        start=replace(of_kind(kind), **own_start),
        arguments=tuple(rest),
        given=frozenset({*given, *changed(server), *own}),
        own=of_this,
        label=title or shlex.join(words_of_text),
        policy_given="policy" in of_this,
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
