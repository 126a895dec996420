"""Describes a setting once: its help, group, unit and bounds, as metadata of a dataclass field.

    @dataclass(frozen=True)
    class Limits:
        batch: Annotated[int, Setting("Requests in one step.", "Scheduling", unit="requests", ge=1)] = 16

        def __post_init__(self) -> None:
            check(self)

    Limits(batch=0)     # ValueError: batch must be at least 1, not 0

Command-line options, their help and configuration files are made from the same descriptions.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast, get_args, get_origin, get_type_hints


@dataclass(frozen=True, slots=True)
class Setting:
    """The description of one setting. The value None is always allowed; NaN violates every bound."""

    help: str
    """The help text of the option."""
    group: str
    """The heading under which ``--help`` lists it."""
    unit: str = ""
    """The unit for messages."""
    first: bool = False
    """Whether it is one of the most important settings, which are listed before all groups."""
    ge: float | None = None
    """Smallest allowed value."""
    gt: float | None = None
    """The value must be above this."""
    le: float | None = None
    """Largest allowed value."""
    finite: bool = False
    """Whether the value must be finite."""
    choices: tuple[int, ...] = ()
    """The allowed numbers. For words, the field has a Literal type instead."""
    secret: bool = False
    """Whether the value must never be written to a file or a message."""
    parse: Callable[[Any], Any] | None = None
    """Converts the text of the command line, or a list of a file, to the value; None: by the type."""

    def problem(self, value: Any) -> str | None:
        """Return the violated bound, such as ``at least 1``; None if the value is within the bounds."""
        if self.ge is not None and not value >= self.ge:
            return f"at least {self.ge}"
        if self.gt is not None and not value > self.gt:
            return f"above {self.gt}"
        if self.le is not None and not value <= self.le:
            return f"at most {self.le}"
        return "finite" if self.finite and not math.isfinite(value) else None


class OutOfBounds(ValueError):
    """A setting has a value that is not allowed."""

    def __init__(self, one: Described, problem: str) -> None:
        super().__init__(f"{one.name} {problem}")
        self.as_option = f"{one.flag} {problem}"
        """The message for the command line."""


class Described(NamedTuple):
    """A field of a settings dataclass with its description."""

    name: str
    type: Any
    """The type without the description, such as ``int | None``."""
    default: Any
    setting: Setting

    @property
    def flag(self) -> str:
        """The option on the command line, such as ``--max-batch-size``."""
        return "--" + self.name.replace("_", "-")

    @property
    def choices(self) -> tuple[Any, ...]:
        """The allowed values, without None, if there is a fixed set; otherwise empty."""
        if self.setting.choices:
            return self.setting.choices
        kinds = [self.type, *get_args(self.type)] if get_origin(self.type) is not Literal else [self.type]
        return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())


def described(schema: type) -> tuple[Described, ...]:
    """Return the fields of a dataclass that have a description, in their order."""
    return _described(cast(Hashable, schema))


@cache
def _described(schema: Any) -> tuple[Described, ...]:
    hints = get_type_hints(schema, include_extras=True)
    found = []
    for field in fields(schema):
        if get_origin(hints[field.name]) is Annotated:
            kind, *extras = get_args(hints[field.name])
            setting = next(extra for extra in extras if isinstance(extra, Setting))
            found.append(Described(field.name, kind, field.default, setting))
    return tuple(found)


def changed(settings: Any) -> dict[str, Any]:
    """Return the settings that differ from their defaults, by name."""
    values = ((one, getattr(settings, one.name)) for one in described(type(settings)))
    return {one.name: value for one, value in values if value != one.default}


def as_arguments(settings: Any) -> list[str]:
    """Return command-line arguments that result in the same settings."""
    flags = {one.name: one.flag for one in described(type(settings))}
    return [
        flags[name] if value is True else f"{flags[name]}={value}"
        for name, value in changed(settings).items()
    ]


def check(settings: object) -> None:
    """Raise OutOfBounds for the first value that is out of its bounds or not one of its choices."""
    for one in described(type(settings)):
        value = getattr(settings, one.name)
        if value is None:
            continue
        if one.choices and value not in one.choices:
            *others, last = map(str, one.choices)
            raise OutOfBounds(one, f"must be {', '.join(others)} or {last}, not {value}")
        if (problem := one.setting.problem(value)) is not None:
            unit = f" ({one.setting.unit})" if one.setting.unit else ""
            raise OutOfBounds(one, f"must be {problem}, not {value}{unit}")


def split(options: Mapping[str, Any], *schemas: type) -> list[Any]:
    """Make one object of each dataclass of settings from options by name. A text becomes a ``Path`` if the
    setting is one.

    Raises:
        TypeError: no dataclass has an option of that name.
        ValueError: a value is out of bounds or of another type.
    """
    import msgspec

    known = {one.name: schema for schema in schemas for one in described(schema)}
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise TypeError(f"there is no option {name}" + (f"; did you mean {near[0]}?" if near else ""))
    made: list[Any] = []
    for schema in schemas:
        mine = {name: _plain(value) for name, value in options.items() if known[name] is schema}
        try:
            made.append(msgspec.convert(mine, schema, dec_hook=lambda kind, value: kind(value)))
        except msgspec.ValidationError as error:
            raise ValueError(str(error).replace(" - at `$.", " for ").rstrip("`")) from None
    return made


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
