"""Says in words what is wrong with a JSON value that msgspec did not accept."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

UNKNOWN = object()
"""In place of a value that could not be parsed."""
_SHOWN_CHARACTERS = 60
"""Characters of a wrong value that a message quotes at most."""
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "object": "a JSON object",
    "array": "a list",
    "null": "null",
}


@dataclass(frozen=True, slots=True)
class JsonProblem:
    """What is wrong with a value, and where. Make one with ``json_problem``."""

    field: str
    """The place, such as ``rope_scaling.factor``; empty: the value as a whole."""
    text: str
    """What is wrong; it continues a sentence that begins with the field."""
    kind: str
    """``missing``, ``type`` or ``value``."""

    def __str__(self) -> str:
        return f"{self.field or 'the value'} {self.text}"


def json_problem(message: str, value: Any) -> JsonProblem:
    """Return the problem that a message of msgspec's ValidationError reports.

    >>> str(json_problem("Expected `int` >= 1 - at `$.rope.factor`", {"rope": {"factor": 0}}))
    'rope.factor is 0, but it must be a whole number >= 1'

    Args:
        value: The parsed JSON, from which the wrong part is quoted; ``UNKNOWN`` if there is none.
    """
    said, _, place = message.partition(" - at ")
    field = place.strip("`").removeprefix("$").removeprefix(".")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", said):
        return JsonProblem(f"{field}.{missing[1]}" if field else missing[1], "is missing", "missing")
    found = _value_at(value, field)
    shown = "" if found is UNKNOWN else quoted(found)
    expected = re.fullmatch(r"Expected (.*?)(, got `.*`)?", said)
    if not expected:
        if said.startswith("Invalid enum value") and shown:
            return JsonProblem(field, f"has the value {shown}, which it cannot have", "value")
        return JsonProblem(field, f"is wrong: {said[:1].lower()}{said[1:]}", "value")
    must = re.sub(r"`([^`]*)`", _in_words, expected[1])
    if not field:
        text = f"must hold {must}" + (f", not {shown}" if shown else "")
    else:
        text = f"is {shown}, but it must be {must}" if shown else f"must be {must}"
    return JsonProblem(field, text, "type" if expected[2] else "value")


def quoted(value: object) -> str:
    """Return a value for a message: on one line, and shortened."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a JSON object"
    text = json.dumps(value, default=repr)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def _in_words(types: re.Match[str]) -> str:
    *first, last = (_KINDS.get(kind, kind) for kind in types[1].split(" | "))
    return f"{', '.join(first)} or {last}" if first else last


def _value_at(value: Any, field: str) -> Any:
    """Return the value at a place such as ``eos_token_id[1]``; ``UNKNOWN`` if it cannot be found."""
    try:
        for name, index in re.findall(r"([^.\[\]]+)|\[([^\]]*)\]", field):
            value = value[name] if name else value[int(index)]
    except (LookupError, ValueError, TypeError):
        return UNKNOWN
    return value
