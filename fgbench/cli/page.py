"""docs/cli.md, made from the commands themselves: ``python -m fgbench.cli.page > docs/cli.md``.

The page lists options in the order and groups of ``--help``. It does not depend on the terminal.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from fgbench.cli.artifact import SPELLINGS
from fgbench.cli.flags import settings_of
from fgbench.cli.main import VERBS, load_verb
from fgengine.settings import Described

INTRODUCTION = """# Command line

This page is made from the commands themselves (`make docs`). It has every verb of `fgbench`, in the order of
`fgbench --help`. `fgbench VERB --help` shows the same in the terminal.

A flag takes no value and is off by default. A repeatable option can be given several times. A dash means
none. Some values are also checked against other options, so a value within the bounds may still be refused.

`--config FILE.toml` gives `run`, `sweep`, `simulate` and `serve` their options from a file, under the same
names: `rate = 2.5`, `max-batch-size = 16`. Options on the command line override the file. `fgbench --version`
prints the version.
"""
WIDTH = 110
"""Characters in a line of prose."""
OPTIONS, ARGUMENTS = "Options", "Arguments"
TYPES: dict[Any, str] = {bool: "flag", int: "integer", float: "number", Path: "path"}
"""What an option takes, by its annotation; any other is text."""
SHORTENED = 2**16
"""Powers of two from here on are written as powers."""


def page() -> str:
    """Return the text of docs/cli.md."""
    parts = [INTRODUCTION]
    seen: dict[str, str] = {}
    for verb, summary in VERBS.items():
        loaded = load_verb(verb)
        commands = getattr(loaded, "commands", None)
        if commands is None:
            parts += _command(verb, loaded, 2, seen)
            continue
        parts.append(f"## {verb}\n\n{summary}\n")
        for name, command in commands.items():
            parts += _command(f"{verb} {name}", command, 3, seen)
    return "\n".join(parts)


def _command(name: str, command: Any, level: int, seen: dict[str, str]) -> Iterator[str]:
    """Yield the section of one command.

    ``seen``: the tables of earlier commands, each with the title of its section. A table that comes again
    is replaced by a link to that section.
    """
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    usage = " ".join([f"fgbench {name} [OPTIONS]", *(_placeholder(one) for one in arguments)])
    yield f"{'#' * level} {name}\n\n```\n{usage}\n```\n"
    yield from _prose(command.help or "")
    for group, parameters in _groups(command).items():
        table = _table(parameters, settings_of(command), inspect.signature(command.callback, eval_str=True))
        title = f"{name}: {group}"
        if table in seen:
            yield f"**{group}**: the same as in [{seen[table]}](#{_anchor(seen[table])}).\n"
            continue
        if group not in (OPTIONS, ARGUMENTS):
            seen[table] = title
        yield f"{'#' * (level + 1)} {title}\n\n{table}\n"


def _groups(command: Any) -> dict[str, list[Any]]:
    """Return the parameters by the heading under which ``--help`` lists them, in its order."""
    groups: dict[str, list[Any]] = {ARGUMENTS: [], OPTIONS: []}
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            groups[ARGUMENTS].append(parameter)
        elif "--help" not in parameter.opts:
            groups.setdefault(getattr(parameter, "rich_help_panel", None) or OPTIONS, []).append(parameter)
    return {group: parameters for group, parameters in groups.items() if parameters}


def _table(parameters: list[Any], settings: dict[str, Described], signature: inspect.Signature) -> str:
    rows = ["| name | takes | default | bounds | meaning |", "|---|---|---|---|---|"]
    for parameter in parameters:
        one = settings.get(parameter.name)
        annotation = signature.parameters[parameter.name].annotation
        cells = (
            _names(parameter),
            _takes(annotation, one),
            _default(parameter),
            _bounds(annotation, one),
            _escaped(parameter.help or ""),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _names(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_placeholder(parameter)}`"
    first, *others = parameter.opts
    names = [first, *(name for name in others if name not in SPELLINGS), *parameter.secondary_opts]
    return ", ".join(f"`{name}`" for name in names)


def _placeholder(argument: Any) -> str:
    """Return an argument as a usage line writes it: ``RUN``, ``[RUNS]...``."""
    if argument.metavar:
        return str(argument.metavar)
    name = str(argument.name).upper()
    name = name if argument.required else f"[{name}]"
    return f"{name}..." if argument.nargs == -1 else name


def _kind(annotation: Any) -> tuple[Any, bool]:
    """Return the type of one value, and whether several are taken: ``(Path, True)`` for ``list[Path]``."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    if NoneType in get_args(annotation):
        annotation = kinds[0]
    if get_origin(annotation) is list:
        return get_args(annotation)[0], True
    return annotation, False


def _takes(annotation: Any, one: Described | None) -> str:
    kind, several = _kind(annotation)
    name = "word" if get_origin(kind) is Literal else TYPES.get(kind, "text")
    if one is not None and one.setting.parse is not None:
        name = "list: `1,2,3`"
    name += ", repeatable" * several
    unit = one.setting.unit if one is not None else ""
    return f"{name} ({unit})" if unit else name


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or value is False or value in ("", (), []):
        return "-"
    if value is True:
        return f"`{parameter.opts[0]}`"
    values = value if isinstance(value, list | tuple) else [value]
    return ", ".join(f"`{item:g}`" if isinstance(item, float) else f"`{item}`" for item in values)


def _bounds(annotation: Any, one: Described | None) -> str:
    kind, _ = _kind(annotation)
    choices = get_args(kind) if get_origin(kind) is Literal else one.choices if one is not None else ()
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    limits: dict[str, float | None] = {}
    if one is not None:
        limits = {"at least": one.setting.ge, "above": one.setting.gt, "at most": one.setting.le}
    else:
        for option in getattr(annotation, "__metadata__", ()):
            limits = {"at least": getattr(option, "min", None), "at most": getattr(option, "max", None)}
    found = [f"{word} {_number(bound)}" for word, bound in limits.items() if bound is not None]
    if one is not None and one.setting.finite:
        found.append("finite")
    return ", ".join(found) or "-"


def _number(value: float) -> str:
    """Return a bound as people read it: ``16``, ``0.1``, ``2^31``, ``2^63 - 1``."""
    if not isinstance(value, int) or value < SHORTENED:
        return f"{value:g}"
    for less in (0, 1):
        if (value + less) & (value + less - 1) == 0:
            return f"2^{(value + less).bit_length() - 1}" + " - 1" * less
    return f"{value:,}"


def _prose(text: str) -> Iterator[str]:
    """Yield a help text as Markdown: indented paragraphs, and those that must not be wrapped, become code."""
    code: list[str] = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        as_it_is = paragraph.startswith("\b\n")
        lines = paragraph.removeprefix("\b\n").strip("\n")
        if as_it_is or lines.startswith(" "):
            code.append(textwrap.dedent(lines))
            continue
        yield from _fenced(code)
        code = []
        yield _wrapped(lines)
    yield from _fenced(code)


def _fenced(code: list[str]) -> Iterator[str]:
    if code:
        yield "```\n" + "\n\n".join(code) + "\n```\n"


def _wrapped(paragraph: str) -> str:
    text = " ".join(paragraph.split())
    if text.startswith("Example: fgbench "):
        return f"Example: `{text.removeprefix('Example: ')}`\n"
    return (
        "\n".join(textwrap.wrap(_escaped(text), WIDTH, break_long_words=False, break_on_hyphens=False)) + "\n"
    )


def _escaped(text: str) -> str:
    """Return the text with Markdown's special characters escaped, on one line, for prose and table cells."""
    for character in "\\`*_<|[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _anchor(title: str) -> str:
    """Return the identifier that mkdocs gives a heading: lower case, hyphens for spaces, no punctuation."""
    text = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return "-".join(text.split())


if __name__ == "__main__":
    print(page(), end="")
