"""How a setting is described, once: its help, group, unit and bounds, as metadata of a dataclass's field.

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
    """None is never out of bounds. NaN always is, where there are any."""

    help: str
    group: str
    """The heading under which ``--help`` lists it."""
    unit: str = ""
    first: bool = False
    """One of the few that matter most: listed before all groups."""
    ge: float | None = None
    """At least."""
    gt: float | None = None
    """Above."""
    le: float | None = None
    """At most."""
    finite: bool = False
    choices: tuple[int, ...] = ()
    """The only numbers that it may be; choices of words are the field's Literal type."""
    secret: bool = False
    """It is written nowhere."""
    parse: Callable[[Any], Any] | None = None
    """From the command line's word, or a file's list, to the value; None: the type says how."""

    def problem(self, value: Any) -> str | None:
        """What the value must be and is not: ``at least 1``; None where it is within the bounds."""
        if self.ge is not None and not value >= self.ge:
            return f"at least {self.ge}"
        if self.gt is not None and not value > self.gt:
            return f"above {self.gt}"
        if self.le is not None and not value <= self.le:
            return f"at most {self.le}"
        return "finite" if self.finite and not math.isfinite(value) else None


class OutOfBounds(ValueError):
    """A setting has a value that it must not have."""

    def __init__(self, one: Described, problem: str) -> None:
        super().__init__(f"{one.name} {problem}")
        self.as_option = f"{one.flag} {problem}"
        """The message for the command line."""


class Described(NamedTuple):
    """A field of a dataclass of settings."""

    name: str
    type: Any
    """Without the description: ``int | None``, say."""
    default: Any
    setting: Setting

    @property
    def flag(self) -> str:
        """On the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def choices(self) -> tuple[Any, ...]:
        """Of a setting with a few values, None apart; empty for others."""
        if self.setting.choices:
            return self.setting.choices
        kinds = [self.type, *get_args(self.type)] if get_origin(self.type) is not Literal else [self.type]
        return next((get_args(kind) for kind in kinds if get_origin(kind) is Literal), ())


def described(schema: type) -> tuple[Described, ...]:
    """The fields of a dataclass that have a description, in their order."""
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
    """The settings that are not at their defaults, by name."""
    values = ((one, getattr(settings, one.name)) for one in described(type(settings)))
    return {one.name: value for one, value in values if value != one.default}


def as_arguments(settings: Any) -> list[str]:
    """Command-line arguments that give the same settings."""
    flags = {one.name: one.flag for one in described(type(settings))}
    return [
        flags[name] if value is True else f"{flags[name]}={value}"
        for name, value in changed(settings).items()
    ]


def check(settings: object) -> None:
    """Raises OutOfBounds for the first value that is out of its bounds or none of its choices."""
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
