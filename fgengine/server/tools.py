"""The fields of a chat that let the model call functions, and what they ask of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from fgengine.grammar import MAX_GRAMMAR_BYTES, Grammar, json_text
from fgengine.invalid_param import InvalidParam
from fgengine.server.calls import MAX_CALLS, arguments_grammar, list_grammar, named_in
from fgengine.server.fields import UnsupportedField

MAX_TOOLS = 128
MAX_TOOLS_BYTES = MAX_GRAMMAR_BYTES
"""Maximum size of all tools as JSON."""
MAX_PAST_CALLS = 128
"""Calls that a message may have."""

FunctionName = Annotated[str, msgspec.Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}(?!\n)$")]
JsonSchema = dict[str, Any]
NO_ARGUMENTS: JsonSchema = {"type": "object", "properties": {}, "additionalProperties": False}


class Function(msgspec.Struct, omit_defaults=True):
    """A function that the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    """The JSON schema of its arguments, which are an object; None: it has none."""
    strict: bool | None = None
    """The arguments always follow the schema, as if strict."""


class Tool(msgspec.Struct):
    """A tool, as OpenAI has it."""

    type: Literal["function"]
    function: Function


class NamedFunction(msgspec.Struct):
    """The name of a function."""

    name: FunctionName


class NamedTool(msgspec.Struct):
    """The function that the answer must call."""

    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class CalledFunction(msgspec.Struct):
    """The name of a function, and its arguments as a JSON text."""

    name: FunctionName
    arguments: str


class ToolCall(msgspec.Struct):
    """A call, in an answer or in a later request."""

    id: str
    type: Literal["function"]
    function: CalledFunction


@dataclass(frozen=True, slots=True)
class WantedCalls:
    """The calls that an answer must have."""

    function: str | None
    """The one function that is called; None: the answer is a list of calls."""
    grammar: Grammar
    functions: tuple[str, ...]
    """The names of all functions."""

    def explained(self, reason: str) -> str:
        """Return why the grammar cannot be used, with the name of the function that is the reason."""
        return reason if self.function is not None else named_in(reason, self.functions)


def wanted_calls(
    tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None
) -> WantedCalls | None:
    """Return the calls that an answer must have; None: it is a text.

    Args:
        parallel: Whether it may have several calls.

    Raises:
        InvalidParam: the tools are too many or too long, two have one name, or the choice is none of them.
        UnsupportedField: the choice is "auto", which is the default if there are tools.
    """
    if not tools:
        if choice in (None, "none", "auto"):
            return None
        raise InvalidParam("tool_choice", "needs tools: give them, or leave it out")
    check_tools(tools)
    if choice == "none":
        return None
    if choice in (None, "auto"):
        raise UnsupportedField(
            'tool_choice "auto", which is also the default with tools, is not supported, because each model '
            'has its own form of calls: set it to "required", to one function, or to "none"',
            "tool_choice",
            "unsupported_value",
        )
    schemas = {tool.function.name: _schema(tool.function, number) for number, tool in enumerate(tools)}
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in schemas:
            raise InvalidParam("tool_choice", f"names the function {name!r}, which is not in tools")
        return WantedCalls(name, arguments_grammar(schemas[name], "tools"), tuple(schemas))
    most = 1 if parallel is False else MAX_CALLS
    return WantedCalls(None, list_grammar(schemas.items(), most, "tools"), tuple(schemas))


def check_tools(tools: Sequence[Tool]) -> None:
    """Raise InvalidParam if there are too many tools, if they are too long, or if two have the same name."""
    if len(tools) > MAX_TOOLS:
        raise InvalidParam("tools", f"has {len(tools)} functions: give at most {MAX_TOOLS}")
    if len(json_text(tools, "tools").encode()) > MAX_TOOLS_BYTES:
        raise InvalidParam("tools", f"has more than {MAX_TOOLS_BYTES} bytes: shorten it")
    numbers: dict[str, int] = {}
    for number, tool in enumerate(tools):
        name = tool.function.name
        first = numbers.setdefault(name, number)
        if first != number:
            where = f"tools[{number}].function.name"
            raise InvalidParam(where, f"is {name!r}, as that of tools[{first}] is: give each its own name")


def shown_tools(tools: Sequence[Tool] | None, choice: ToolChoice | None) -> Sequence[Tool]:
    """Return the tools that the chat template shows. Raises InvalidParam as ``check_tools`` does."""
    check_tools(tools or ())
    return () if choice == "none" else tools or ()


def arguments_of(text: str, where: str) -> dict[str, Any]:
    """Return the arguments of an earlier call as the chat template gets them. An empty text is no arguments.

    Raises InvalidParam, whose field is ``where``, if the text is no JSON object.
    """
    try:
        found = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidParam(where, "must be the text of a JSON object")
    return found


def _schema(function: Function, number: int) -> JsonSchema:
    """Return the schema of a function's arguments, which are an object whether the schema says so or not."""
    schema = function.parameters
    if schema is None:
        return NO_ARGUMENTS
    if schema.get("type", "object") != "object":
        where = f"tools[{number}].function.parameters.type"
        raise InvalidParam(where, 'must be "object", because arguments are a JSON object')
    return {"type": "object", **schema}
