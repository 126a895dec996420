"""Options that several verbs take, declared once as the fields of a dataclass."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one command-line option for each field of its parameters that are dataclasses.

    typer reads a command's options from its signature: here such a parameter (``server: ServerOptions``) is
    replaced in it by the dataclass's fields, and put together again when the command is called. Of options
    that share a name the command's own is taken before a group's, and an earlier group's before a later
    one's; the field of the other stays at its default. So a verb that asks for a thing in another way
    (``--rates`` for ``rate``) gives its own parameter the field's name.
    """
    # Not by get_type_hints: for a parameter that is None by default, Python 3.10's hides what is annotated.
    parameters = inspect.signature(command, eval_str=True).parameters
    hints = {name: parameter.annotation for name, parameter in parameters.items()}
    groups = {name: hints[name] for name in parameters if is_dataclass(hints[name])}
    options = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in parameters.items()
        if name not in groups
    ]
    taken = {option.name for option in options}
    of_group: dict[str, list[str]] = {}
    for name, group in groups.items():
        group_hints = get_type_hints(group, include_extras=True)
        of_group[name] = [field.name for field in fields(group) if field.name not in taken]
        options += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=group_hints[field.name],
            )
            for field in fields(group)
            if field.name not in taken
        ]
        taken.update(of_group[name])

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        made = {
            name: group(**{field: values.pop(field) for field in of_group[name]})
            for name, group in groups.items()
        }
        command(**made, **values)

    wrapper.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {option.name: option.annotation for option in options}
    return wrapper
