"""Parses the body of a request, and checks which fields it and the objects in it have."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from itertools import islice
from typing import Any, get_args

import msgspec

from fgengine.json_problems import json_problem, quoted
from fgengine.server.fields import (
    HARMLESS_IN_CALLS,
    HARMLESS_INSIDE,
    MAX_UNKNOWN,
    OF_MESSAGES,
    OF_STREAM_OPTIONS,
    check_fields,
)
from fgengine.server.schemas import (
    ALL_FIELDS,
    MAX_MESSAGES,
    BadRequestError,
    Body,
    Message,
    Role,
    StreamOptions,
    TextPart,
    refused_by_name,
)
from fgengine.server.tools import (
    MAX_PAST_CALLS,
    MAX_TOOLS,
    CalledFunction,
    Function,
    NamedFunction,
    NamedTool,
    Tool,
    ToolCall,
)


def read_body(raw: bytes, kind: type[Body], report: Callable[[str], None] = lambda name: None) -> Body:
    """Parse and check a request's JSON body.

    ``report``: called with the name of each field that is ignored and might mean something.

    Raises:
        BadRequestError: the body is not a JSON object, or a field has the wrong type or is not supported.
    """
    try:
        fields = msgspec.json.decode(raw)
    except msgspec.ValidationError as error:  # without a type, only numbers can be invalid
        field = _field_with_large_number(raw)
        message = f"{field or 'the body'} has a number that is too large: give a smaller one"
        raise BadRequestError(message, field) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequestError(
            f"the body is not valid JSON ({error}): send a JSON object", None, None
        ) from error
    except RecursionError:
        message = "the body is nested too deeply: send a JSON object with less nesting"
        raise BadRequestError(message, None, None) from None
    if not isinstance(fields, dict):
        message = "the body is not a JSON object: send an object with the request's fields"
        raise BadRequestError(message, None, None)
    with refused_by_name():
        check_fields(fields, kind.__struct_fields__, ALL_FIELDS, report)
        _check_inside(fields, report)
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        problem = json_problem(str(error), fields)
        raise BadRequestError(str(problem), problem.field or None, CODES[problem.kind]) from error


def _field_with_large_number(raw: bytes) -> str | None:
    """Return the field of a body in which there is a number that cannot be read; None: not known."""
    with contextlib.suppress(ValueError, RecursionError):  # of other mistakes in the body
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        return next((name[:64] for name, value in fields.items() if _has_large_number(value)), None)
    return None


def _has_large_number(value: msgspec.Raw) -> bool:
    try:
        msgspec.json.decode(value)
    except msgspec.ValidationError:
        return True
    return False


CODES: dict[str, str] = {
    "missing": "missing_required_parameter",
    "type": "invalid_type",
    "value": "invalid_value",
}
"""OpenAI's codes for the kinds of ``JsonProblem``."""


def _check_inside(fields: dict[str, Any], report: Callable[[str], None]) -> None:
    """Check the fields of the objects in a body. Raises UnsupportedField or BadRequestError."""
    options, messages = fields.get("stream_options"), fields.get("messages")
    if isinstance(options, dict):
        known = StreamOptions.__struct_fields__
        check_fields(
            options, known, (), report, unsupported=OF_STREAM_OPTIONS, harmless=(), path="stream_options"
        )
    unknown: set[str] = set()

    def report_few(name: str) -> None:
        if name not in unknown:
            unknown.add(name)
            report(name)
        if len(unknown) > MAX_UNKNOWN:
            message = (
                f"messages and tools have too many unknown fields, such as {name[:64]!r}: leave them out"
            )
            raise BadRequestError(message, "messages", "unknown_parameter")

    if isinstance(messages, list):
        for number, message in enumerate(islice(messages, MAX_MESSAGES)):
            if isinstance(message, dict):
                _check_message(message, f"messages[{number}]", report_few)
    _check_tools(fields, report_few)


def _check_message(message: dict[str, Any], path: str, report: Callable[[str], None]) -> None:
    known = Message.__struct_fields__
    check_fields(message, known, (), report, unsupported=OF_MESSAGES, harmless=HARMLESS_INSIDE, path=path)
    _check_word(message, "role", get_args(Role), path)
    role, calls, content = message.get("role"), message.get("tool_calls"), message.get("content")
    if calls and role != "assistant":
        raise _wrong_role(f"{path}.tool_calls", "an assistant")
    if message.get("tool_call_id") is not None and role != "tool":
        raise _wrong_role(f"{path}.tool_call_id", "a tool")
    if calls and isinstance(calls, list):
        _check_calls(calls, f"{path}.tool_calls", report)
    elif content is None:
        where = f"{path}.content"
        if "content" not in message:
            raise BadRequestError(f"{where} is missing", where, CODES["missing"])
        raise BadRequestError(f"{where} is null: give a text or a list of text parts", where, "invalid_type")
    for number, part in enumerate(content if isinstance(content, list) else ()):
        if isinstance(part, dict) and (part.get("type") != "text" or len(part) > 2):
            where = f"{path}.content[{number}]"
            _check_word(part, "type", ("text",), where)
            known = TextPart.__struct_fields__
            check_fields(part, known, (), report, unsupported={}, harmless=HARMLESS_INSIDE, path=where)


def _wrong_role(where: str, role: str) -> BadRequestError:
    return BadRequestError(f"{where} is a field of {role}'s messages: leave it out", where)


def _check_calls(calls: list[Any], path: str, report: Callable[[str], None]) -> None:
    harmless = HARMLESS_INSIDE | HARMLESS_IN_CALLS
    for number, call in enumerate(islice(calls, MAX_PAST_CALLS)):
        _check_function(call, f"{path}[{number}]", ToolCall, CalledFunction, harmless, report)


def _check_tools(fields: dict[str, Any], report: Callable[[str], None]) -> None:
    tools, choice = fields.get("tools"), fields.get("tool_choice")
    for number, tool in enumerate(islice(tools, MAX_TOOLS) if isinstance(tools, list) else ()):
        _check_function(tool, f"tools[{number}]", Tool, Function, HARMLESS_INSIDE, report)
    _check_function(choice, "tool_choice", NamedTool, NamedFunction, HARMLESS_INSIDE, report)


def _check_function(
    value: Any,
    path: str,
    kind: type[msgspec.Struct],
    inner: type[msgspec.Struct],
    harmless: Collection[str],
    report: Callable[[str], None],
) -> None:
    """Check the fields of an object that has a type and a function: a tool, a call or a choice."""
    if not isinstance(value, dict):
        return
    _check_word(value, "type", ("function",), path)
    for one, struct, where in ((value, kind, path), (value.get("function"), inner, f"{path}.function")):
        if isinstance(one, dict):
            known = struct.__struct_fields__
            check_fields(one, known, (), report, unsupported={}, harmless=harmless, path=where)


def _check_word(fields: dict[str, Any], name: str, words: tuple[str, ...], path: str) -> None:
    """Raise BadRequestError if a field is a text, but none of the words that it may be."""
    value = fields.get(name)
    if isinstance(value, str) and value not in words:
        message = f"{path}.{name} is {quoted(value)}, but it must be {' or '.join(words)}"
        raise BadRequestError(message, f"{path}.{name}")
