"""Command-line options made from the descriptions of settings, and configuration files of the same options.

    @takes_options
    def serve(server: EngineConfig, config: ConfigFile = None, port: ... = 10000) -> None: ...

gives ``fgbench serve`` an option for each described field of ``EngineConfig``, and makes an ``EngineConfig``
of what was given.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_origin, overload

import typer
from typer.core import TyperCommand

from fgbench.cli.artifact import translated
from fgbench.spec.files import read_options
from fgengine.settings import Described, OutOfBounds, described

Verb = Callable[..., None]
GIVEN = ("COMMANDLINE", "DEFAULT_MAP")
"""Sources of an option's value: the command line, a configuration file."""


class Command(TyperCommand):
    """A verb: it knows the published artifact's spellings of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = {flag for parameter in self.params for flag in parameter.opts}
        return super().parse_args(ctx, translated(args, flags))


def read_config(context: typer.Context, value: Path | None) -> Path | None:
    """Takes the options in a TOML file as the command's defaults. Raises ValueError for a key that is none of
    them."""
    if value is not None:
        parameters = {
            flag.removeprefix("--"): (parameter.name, getattr(parameter, "multiple", False))
            for parameter in context.command.params
            for flag in parameter.opts
            if flag.startswith("--") and not parameter.is_eager
        }
        found = {}
        for key, option in read_options(value).items():
            name = key.replace("_", "-")
            if name not in parameters:
                near = difflib.get_close_matches(name, parameters, 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"{value}: '{context.info_name}' has no option {name}{hint}")
            parameter, several = parameters[name]
            if isinstance(option, list) and not several:
                option = ",".join(map(str, option))
            found[parameter] = option
        context.default_map = found
    return value


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="A TOML file of options, such as a run folder's spec.toml. Options given here come before it.",
        is_eager=True,
        callback=read_config,
    ),
]
"""The parameter ``config`` of a verb that takes its options from a file too."""


@overload
def takes_options(command: Verb) -> Verb: ...


@overload
def takes_options(*, without: Mapping[str, Collection[str]]) -> Callable[[Verb], Verb]: ...


def takes_options(
    command: Verb | None = None, *, without: Mapping[str, Collection[str]] | None = None
) -> Verb | Callable[[Verb], Verb]:
    """Gives a command an option for each described field of its parameters that are dataclasses.

    typer reads a command's options from its signature. Here such a parameter (``server: EngineConfig``) is
    replaced by the dataclass's fields, and made of them when the command is called. The settings that matter
    most come first in ``--help``, right behind the command's own options.

    ``without``: by parameter, the fields that are no options of this command and stay at their defaults.

    Raises:
        TypeError: two options have the same name.
    """
    if command is None:
        return lambda verb: _with_options(verb, without or {})
    return _with_options(command, {})


def _with_options(command: Verb, left_out: Mapping[str, Collection[str]]) -> Verb:
    # Not by get_type_hints: for a parameter that is None by default, Python 3.10's hides what is annotated.
    parameters = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {n: p.annotation for n, p in parameters.items() if is_dataclass(p.annotation)}
    own = [p.replace(kind=p.KEYWORD_ONLY) for n, p in parameters.items() if n not in groups]
    fields = {
        name: [one for one in described(schema) if one.name not in left_out.get(name, ())]
        for name, schema in groups.items()
    }
    of_groups = [one for group in fields.values() for one in group]
    options = [*own, *map(_parameter, sorted(of_groups, key=lambda one: not one.setting.first))]
    names = [option.name for option in options]
    if twice := {name for name in names if names.count(name) > 1}:
        raise TypeError(f"{command.__name__}: two options are called {', '.join(sorted(twice))}")

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        try:
            made = {
                name: schema(**{one.name: _as_field(one, values.pop(one.name)) for one in fields[name]})
                for name, schema in groups.items()
            }
        except OutOfBounds as error:
            raise ValueError(error.as_option) from None
        command(**made, **values)

    wrapper.__doc__ = unwrapped(inspect.getdoc(command) or "")
    wrapper.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {option.name: option.annotation for option in options}
    wrapper.settings = {one.name: one for one in of_groups}  # type: ignore[attr-defined]
    return wrapper


def settings_of(command: Any) -> dict[str, Described]:
    """The settings behind a loaded verb's options, by parameter; empty if it has none."""
    return getattr(command.callback, "settings", {})


def given(context: Any) -> set[str]:
    """Names of the options that the user gave, on the command line or in a configuration file."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name in GIVEN}


def unwrapped(text: str) -> str:
    """Paragraphs as one line each, to be wrapped to the terminal's width; indented lines stay as they are."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.split("\n")
        is_example = any(line.startswith(" ") for line in lines)
        paragraphs.append(paragraph if is_example else " ".join(line.strip() for line in lines))
    return "\n\n".join(paragraphs)


def _parameter(one: Described) -> inspect.Parameter:
    setting, kind, default = one.setting, one.type, one.default
    more: dict[str, Any] = {}
    if setting.parse is not None:
        kind, default, more = str, "", {"metavar": "<list>"}
    elif get_origin(kind) is tuple:
        kind, default = list[str], list(default)
    group = None if setting.first else setting.group
    option = typer.Option(
        one.flag,
        help=setting.help,
        rich_help_panel=group,
        show_default=default not in (None, (), False),
        **more,
    )
    return inspect.Parameter(
        one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _as_field(one: Described, value: Any) -> Any:
    """From what typer gives to what the dataclass holds."""
    if one.setting.parse is not None:
        return one.setting.parse(value)
    return tuple(value) if isinstance(value, list) else value
