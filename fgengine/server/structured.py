"""The fields that ask for a structured answer, OpenAI's and vLLM's, and the grammar that each stands for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from fgengine.grammar import MAX_GRAMMAR_BYTES, Grammar, json_text
from fgengine.invalid_param import InvalidParam

MAX_CHOICES = 1024
JsonSchema = dict[str, Any]


class TextFormat(msgspec.Struct, tag="text"):
    """OpenAI's response_format for an answer without a structure."""


class JsonObjectFormat(msgspec.Struct, tag="json_object"):
    """OpenAI's response_format for any JSON object."""


class NamedSchema(msgspec.Struct):
    """A JSON schema, as OpenAI's response_format has it. The answer always follows it, as if strict."""

    name: str
    schema: JsonSchema
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, tag="json_schema"):
    """OpenAI's response_format for an answer that follows a JSON schema."""

    json_schema: NamedSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat


class StructuredOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """vLLM's structured_outputs; one of them."""

    json: JsonSchema | str | None = None
    """A JSON schema, or its text."""
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    """In llguidance's form of Lark."""
    json_object: bool | None = None


class StructuredBody(msgspec.Struct, kw_only=True):
    """The fields of a body that ask for a structured answer; at most one of them."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    def grammar(self) -> Grammar | None:
        """Return what the answer must follow; None: nothing.

        Raises InvalidParam if several fields ask for it, or if one is too long; the message names the field.
        """
        found = list(self.grammars())
        if len(found) > 1:
            raise InvalidParam(
                found[1].field, f"and {found[0].field} contradict each other: give one of them"
            )
        return found[0] if found else None

    def grammars(self) -> Iterator[Grammar]:
        """Yield the grammar of each field that asks for one. Raises InvalidParam, as ``grammar`` does."""
        if isinstance(self.response_format, JsonObjectFormat):
            yield _any_object("response_format")
        elif isinstance(self.response_format, JsonSchemaFormat):
            yield _schema(self.response_format.json_schema.schema, "response_format")
        options = self.structured_outputs or StructuredOutputs()
        if options.json_object:
            yield _any_object("structured_outputs")
        yield from _of_kinds(
            "structured_outputs", options.json, options.regex, options.choice, options.grammar
        )
        yield from _of_kinds("guided_json", json=self.guided_json)
        yield from _of_kinds("guided_regex", regex=self.guided_regex)
        yield from _of_kinds("guided_choice", choice=self.guided_choice)
        yield from _of_kinds("guided_grammar", grammar=self.guided_grammar)


def _of_kinds(
    field: str,
    json: JsonSchema | str | None = None,
    regex: str | None = None,
    choice: list[str] | None = None,
    grammar: str | None = None,
) -> Iterator[Grammar]:
    if json is not None:
        yield _schema(json, field)
    if regex is not None:
        yield Grammar("regex", regex, field)
    if choice is not None:
        yield _one_of(choice, field)
    if grammar is not None:
        yield Grammar("lark", grammar, field)


def _any_object(field: str) -> Grammar:
    return _schema({"type": "object"}, field)


def _schema(schema: JsonSchema | str, field: str) -> Grammar:
    return Grammar("json_schema", schema if isinstance(schema, str) else json_text(schema, field), field)


def _one_of(choices: list[str], field: str) -> Grammar:
    if not 0 < len(choices) <= MAX_CHOICES or not all(choices):
        raise InvalidParam(field, f"has {len(choices)} choices: give 1 to {MAX_CHOICES}, none of them empty")
    if sum(map(len, choices)) > MAX_GRAMMAR_BYTES:
        raise InvalidParam(field, f"has choices of more than {MAX_GRAMMAR_BYTES} characters: shorten them")
    return Grammar(
        "lark", "start: " + " | ".join(json.dumps(one, ensure_ascii=False) for one in choices), field
    )
