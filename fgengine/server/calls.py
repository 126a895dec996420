"""The text of an answer that calls functions: the grammar that it follows, and the calls in it. Pure.

A list of calls is JSON with the same text around all arguments, so it can be read piece by piece:

    [{"name": "add", "arguments": {"a": 1}}, {"name": "now", "arguments": {}}]

An answer that calls one given function is only the arguments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from fgengine.grammar import Grammar, json_text
from fgengine.matching import JSON_OPTIONS

MAX_CALLS = 16
"""Calls that an answer may have. Without a limit, a model may go on until its context is full."""

HEAD, MIDDLE, TAIL, COMMA = '{"name": "', '", "arguments": ', "}", ", "
_BEGIN = re.compile(rf'(?:\[|{TAIL}{COMMA}){re.escape(HEAD)}([^"]*){re.escape(MIDDLE)}')
_END = TAIL + "]"
LINES_BEFORE = 2
"""Lines of a list's grammar before that of the first function."""
_OUTSIDE_STRINGS, _IN_STRINGS = re.compile(r'["{}\[\]]'), re.compile(r'["\\]')


def list_grammar(functions: Iterable[tuple[str, dict[str, Any]]], most: int, field: str) -> Grammar:
    """Return the grammar of a list of 1 to ``most`` calls.

    Args:
        functions: Name of each function, and the JSON schema of its arguments.
        most: Maximum number of calls.
        field: The request's field, for messages.

    Raises:
        InvalidParam: the grammar is too long, or a schema is nested too deeply.
    """
    rules = [
        f"call_{number}: {json.dumps(name + MIDDLE)} %json {_with_options(schema, field)}"
        for number, (name, schema) in enumerate(functions)
    ]
    any_call = " | ".join(f"call_{number}" for number in range(len(rules)))
    more = f" ({json.dumps(COMMA)} call){{0,{most - 1}}}" if most > 1 else ""
    lines = [
        f'start: "[" call{more} "]"',
        f"call: {json.dumps(HEAD)} ({any_call}) {json.dumps(TAIL)}",
        *rules,
    ]
    return Grammar("lark", "\n".join(lines), field)


def named_in(reason: str, functions: Sequence[str]) -> str:
    """Return why the grammar of a list cannot be used, with the function's name in place of its line."""
    for number, function in enumerate(functions, LINES_BEFORE + 1):
        line = rf"\bat {number}\(\d+\): failed to compile JSON schema"
        reason = re.sub(line, f"the parameters of {function}", reason, count=1)
    return reason


def arguments_grammar(schema: dict[str, Any], field: str) -> Grammar:
    """Return the grammar of the arguments alone, for which there is a JSON schema."""
    return Grammar("json_schema", json_text(schema, field), field)


def _with_options(schema: dict[str, Any], field: str) -> str:
    """Return the schema as JSON. llguidance's options in it are ours, whatever the client's are."""
    return json_text({**schema, "x-guidance": JSON_OPTIONS}, field)


class CallPart(NamedTuple):
    """What a piece of text adds to one of the calls."""

    call: int
    """The number of the call, from 0."""
    name: str | None
    """The name of the function, with the call's first part; None: it is no first part."""
    arguments: str
    """Text of the arguments."""


class Reader(Protocol):
    """Reads the calls in a text as its pieces arrive. How the text is divided makes no difference."""

    def add(self, text: str) -> list[CallPart]:
        """Add a piece; return what it adds to the calls, at most one part for each."""
        ...

    @property
    def listed(self) -> bool:
        """Whether the text is a list of calls that is complete."""
        ...


class ListReader:
    """Reads a list of calls. A call begins with its arguments, when its name is known.

    reader = ListReader()
    reader.add('[{"name": "add", "arguments": {"a"')   # [CallPart(0, "add", '{"a"')]
    reader.add(": 1}}]")                               # [CallPart(0, None, ": 1}")]
    """

    def __init__(self) -> None:
        self._around = ""
        """Text around arguments that is not complete yet."""
        self._calls = 0
        self._depth = 0
        """Brackets that are open in the arguments; 0 before and after them."""
        self._begun = False
        """Whether the text is in the arguments of a call."""
        self._in_string = False
        self._escaped = False
        self.listed = False

    def add(self, text: str) -> list[CallPart]:
        parts: list[CallPart] = []
        while text:
            if self._begun:
                end = self._end_of_arguments(text)
                if parts and parts[-1].call == self._calls - 1:
                    parts[-1] = parts[-1]._replace(arguments=text[:end])
                else:
                    parts.append(CallPart(self._calls - 1, None, text[:end]))
                text = text[end:]
                continue
            self._around += text
            text = ""
            if found := _BEGIN.match(self._around):
                parts.append(CallPart(self._calls, found[1], ""))
                self._calls += 1
                self._begun = True
                text, self._around = self._around[found.end() :], ""
            elif self._around == _END:
                self.listed = True
        return parts

    def _end_of_arguments(self, text: str) -> int:
        """Return where the arguments end in the text, or its length if they go on."""
        at = 0
        if self._escaped:
            at, self._escaped = 1, False
        while found := (_IN_STRINGS if self._in_string else _OUTSIDE_STRINGS).search(text, at):
            at = found.end()
            if found[0] == "\\":
                self._escaped = at == len(text)
                at += 1
            elif found[0] == '"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if found[0] in "{[" else -1
                if self._depth == 0:
                    self._begun = False
                    return at
        return len(text)


class ArgumentsReader:
    """Reads the arguments of one call."""

    listed = False

    def __init__(self, function: str) -> None:
        self._name: str | None = function

    def add(self, text: str) -> list[CallPart]:
        name, self._name = self._name, None
        return [CallPart(0, name, text)] if text or name else []


def joined(parts: Sequence[CallPart]) -> list[tuple[str, str]]:
    """Return the name of the function and the arguments of each call."""
    names = [part.name for part in parts if part.name is not None]
    arguments = [""] * len(names)
    for part in parts:
        arguments[part.call] += part.arguments
    return list(zip(names, arguments, strict=True))
