"""Makes command-line options from dataclasses of settings, and reads the same options from TOML files.

    @takes_options
    def serve(server: EngineConfig, config: ConfigFile = None, port: ... = 10000) -> None: ...

This gives ``fgbench serve`` an option for each described field of ``EngineConfig``. When the verb is called,
``server`` is an ``EngineConfig`` with the given values.
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
"""click's names for the two sources of a value that the user gave: command line and configuration file."""


class Command(TyperCommand):
    """A verb that also accepts the option names of FastServe's published artifact."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = {flag for parameter in self.params for flag in parameter.opts}
        return super().parse_args(ctx, translated(args, flags))


def read_config(context: typer.Context, value: Path | None) -> Path | None:
    """Make the options in a TOML file the command's defaults.

    Raises ValueError if a key of the file is not an option of the command.
    """
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
                similar = difflib.get_close_matches(name, parameters, 1)
                hint = f"; did you mean {similar[0]}?" if similar else ""
                raise ValueError(f"{value}: '{context.info_name}' has no option {name}{hint}")
            parameter, is_multiple = parameters[name]
            if isinstance(option, list) and not is_multiple:
                option = ",".join(map(str, option))
            found[parameter] = option
        context.default_map = found
    return value


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file of options, such as a run folder's spec.toml. The command line overrides it.",
        is_eager=True,
        callback=read_config,
    ),
]
"""Type of the parameter ``config`` of a verb that can read its options from a file."""


@overload
def takes_options(command: Verb) -> Verb: ...


@overload
def takes_options(*, without: Mapping[str, Collection[str]]) -> Callable[[Verb], Verb]: ...


def takes_options(
    command: Verb | None = None, *, without: Mapping[str, Collection[str]] | None = None
) -> Verb | Callable[[Verb], Verb]:
    """Give a command one option for each described field of its dataclass parameters.

    typer reads a command's options from its signature. This decorator replaces a parameter such as
    ``server: EngineConfig`` by the fields of the dataclass. When the command is called, it makes the
    dataclass from the given values. ``--help`` lists the command's own options first, then the most important
    settings, then all others.

    Args:
        without: Parameter -> fields that get no option and remain at their defaults.

    Raises:
        TypeError: two options have the same name.
    """
    if command is None:
        return lambda verb: _with_options(verb, without or {})
    return _with_options(command, {})


def _with_options(command: Verb, left_out: Mapping[str, Collection[str]]) -> Verb:
    # Not get_type_hints: in Python 3.10 it wraps a parameter whose default is None, and hides Annotated.
    parameters = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {n: p.annotation for n, p in parameters.items() if is_dataclass(p.annotation)}
    own = [p.replace(kind=p.KEYWORD_ONLY) for n, p in parameters.items() if n not in groups]
    fields = {
        name: [field for field in described(schema) if field.name not in left_out.get(name, ())]
        for name, schema in groups.items()
    }
    settings = [field for group in fields.values() for field in group]
    options = [*own, *map(_parameter, sorted(settings, key=lambda field: not field.setting.first))]
    names = [option.name for option in options]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise TypeError(f"{command.__name__}: two options are called {', '.join(sorted(duplicates))}")

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        try:
            made = {
                name: schema(
                    **{field.name: _as_field(field, values.pop(field.name)) for field in fields[name]}
                )
                for name, schema in groups.items()
            }
        except OutOfBounds as error:
            raise ValueError(error.as_option) from None
        command(**made, **values)

    wrapper.__doc__ = unwrapped(inspect.getdoc(command) or "")
    wrapper.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {option.name: option.annotation for option in options}
    wrapper.settings = {field.name: field for field in settings}  # type: ignore[attr-defined]
    return wrapper


def settings_of(command: Any) -> dict[str, Described]:
    """The settings behind a loaded verb's options, by parameter; empty if it has none."""
    return getattr(command.callback, "settings", {})


def given(context: Any) -> set[str]:
    """Return the names of the options that the user gave, on the command line or in a configuration file."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name in GIVEN}


def unwrapped(text: str) -> str:
    """Join each paragraph into one line, for the terminal to wrap. Keep paragraphs with indented lines."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        lines = paragraph.split("\n")
        is_example = any(line.startswith(" ") for line in lines)
        paragraphs.append(paragraph if is_example else " ".join(line.strip() for line in lines))
    return "\n\n".join(paragraphs)


def _parameter(field: Described) -> inspect.Parameter:
    """Return the typer parameter for a field of a dataclass of settings."""
    setting, kind, default = field.setting, field.type, field.default
    more: dict[str, Any] = {}
    if setting.parse is not None:
        kind, default, more = str, "", {"metavar": "<list>"}
    elif get_origin(kind) is tuple:
        kind, default = list[str], list(default)
    group = None if setting.first else setting.group
    option = typer.Option(
        field.flag,
        help=setting.help,
        rich_help_panel=group,
        show_default=default not in (None, (), False),
        **more,
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


def _as_field(field: Described, value: Any) -> Any:
    """Convert typer's value to the value of the dataclass field."""
    if field.setting.parse is not None:
        return field.setting.parse(value)
    return tuple(value) if isinstance(value, list) else value
