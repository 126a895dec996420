"""The grammar that an answer must follow. Pure; ``matching`` compiles it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from fgengine.invalid_param import InvalidParam

MAX_GRAMMAR_BYTES = 64 * 1024
"""Maximum size of a grammar's text in UTF-8."""

GrammarKind = Literal["json_schema", "regex", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer may be, as a text.

        Grammar("regex", "yes|no")

    Raises InvalidParam if the text is too long; the message names the field.
    """

    kind: GrammarKind
    """json_schema: the text is a JSON schema, and the answer is JSON. regex: a regular expression in Rust's
    syntax, which the complete answer matches. lark: a context-free grammar in llguidance's form of Lark."""
    text: str
    field: str = "grammar"
    """The request's field that asks for it, for messages."""

    def __post_init__(self) -> None:
        if len(self.text) > MAX_GRAMMAR_BYTES or len(self.text.encode(errors="replace")) > MAX_GRAMMAR_BYTES:
            raise InvalidParam(self.field, f"has more than {MAX_GRAMMAR_BYTES} bytes: shorten it")


def json_text(value: Any, field: str) -> str:
    """Return a part of a request's body, such as a JSON schema, as JSON.

    Raises InvalidParam if it is nested too deeply. How deep that is depends on Python's version: it can read
    bodies that it cannot write.
    """
    try:
        return msgspec.json.encode(value).decode()
    except RecursionError:
        raise InvalidParam(field, "is nested too deeply: give it with less nesting") from None
