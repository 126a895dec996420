"""GET /openapi.json: what the server can be asked, and what it answers, as an OpenAPI document.

Bodies are described by the structs that check them (``schemas``), by the fields that are refused
(``fields``) and by ``RULES``: limits that a struct's types do not express. ``OPERATIONS`` describes the
routes. A new route needs an entry there; a new field of a body appears by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import msgspec
from aiohttp import web

from fgengine.grammar import MAX_GRAMMAR_BYTES
from fgengine.server import answer_types as types
from fgengine.server.choices import MAX_ANSWERS
from fgengine.server.fields import HARMLESS, NO_EFFECT, OF_MESSAGES, OF_STREAM_OPTIONS
from fgengine.server.handlers import OPTIONS
from fgengine.server.legacy import STREAM_TYPE
from fgengine.server.routes import LIVE, METRICS, READY, STATS
from fgengine.server.schemas import (
    ALL_FIELDS,
    MAX_LOGPROBS,
    MAX_MESSAGES,
    MAX_STOP_CHARACTERS,
    MAX_STOP_TOKENS,
    MAX_STOPS,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    GenerateBody,
    Message,
    StreamOptions,
    TokenizeBody,
)
from fgengine.server.structured import MAX_CHOICES
from fgengine.server.tools import MAX_TOOLS

DISTRIBUTION = "fgbench"
JSON, EVENTS, TEXT, OPENMETRICS = (
    "application/json",
    "text/event-stream",
    "text/plain",
    "application/openmetrics-text",
)
Content = dict[str, Any]
"""Media type -> a struct, or a JSON schema."""

ERRORS = {
    400: "The request is invalid: its form, a field's type or value, or a field that is not supported.",
    401: "The server wants an API key, and the request has none or a wrong one.",
    403: "The request has a name of the server (Host) or an origin (Origin) that is not allowed.",
    404: "There is no such model.",
    408: "The request did not arrive in time.",
    413: "The body is too large.",
    415: "The body is not JSON by its Content-Type.",
    429: "The queue is full, or the client has too many open requests. Retry-After says when to try again.",
    500: "The server has failed.",
    503: "The engine is starting, hung, broken or stopping, the server finishes its open requests and then "
    "ends, it has too many connections, or the request waited for too long.",
}
EVERYWHERE = (400, 408, 500, 503)
"""Errors that every route can answer, also /health."""
ALWAYS = (*EVERYWHERE, 401, 403)
"""Errors that every other route can answer."""
READING = (*ALWAYS, 404, 413, 415, 429)
"""Errors of the routes that take a body."""
KEY = "key"
"""Name of the security scheme."""

RULES: dict[str, dict[str, dict[str, Any]]] = {
    "max_tokens": {"integer": {"minimum": 1}},
    "max_completion_tokens": {"integer": {"minimum": 1}},
    "temperature": {"number": {"minimum": 0, "maximum": 10}},
    "top_p": {"number": {"exclusiveMinimum": 0, "maximum": 1}},
    "top_k": {"integer": {"minimum": -1}},
    "min_p": {"number": {"minimum": 0, "maximum": 1}},
    "presence_penalty": {"number": {"minimum": -2, "maximum": 2}},
    "frequency_penalty": {"number": {"minimum": -2, "maximum": 2}},
    "repetition_penalty": {"number": {"exclusiveMinimum": 0, "maximum": 10}},
    "n": {"integer": {"minimum": 1, "maximum": MAX_ANSWERS}},
    "best_of": {"integer": {"minimum": 1, "maximum": MAX_ANSWERS}},
    "logprobs": {"integer": {"minimum": 0, "maximum": MAX_LOGPROBS}},
    "stop": {
        "string": {"minLength": 1, "maxLength": MAX_STOP_CHARACTERS},
        "array": {
            "maxItems": MAX_STOPS,
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS},
        },
    },
    "stop_token_ids": {"array": {"maxItems": MAX_STOP_TOKENS}},
    "guided_regex": {"string": {"maxLength": MAX_GRAMMAR_BYTES}},
    "guided_grammar": {"string": {"maxLength": MAX_GRAMMAR_BYTES}},
    "guided_choice": {"array": {"minItems": 1, "maxItems": MAX_CHOICES}},
    "messages": {"array": {"minItems": 1, "maxItems": MAX_MESSAGES}},
    "tools": {"array": {"maxItems": MAX_TOOLS}},
}
"""Field -> JSON type -> limits, for limits that are checked in code. A test tries each of them."""
LENGTHS = ("max_tokens", "max_completion_tokens")
WITH_ECHO: dict[str, dict[str, dict[str, Any]]] = {name: {"integer": {"minimum": 0}} for name in LENGTHS}
"""What a completion has in place of ``RULES``; without ``echo``, ``RULES`` hold."""
UNLESS_ECHO = [
    {"properties": {"echo": {"const": True}}, "required": ["echo"]},
    {"properties": {name: RULES[name]["integer"] for name in LENGTHS}},
]

CONTENT_OR_CALLS = [
    {"properties": {"content": {"not": {"type": "null"}}}, "required": ["content"]},
    {
        "properties": {"role": {"const": "assistant"}, "tool_calls": {"type": "array", "minItems": 1}},
        "required": ["tool_calls"],
    },
]
"""What a message must have: a content, or the calls of an assistant."""


@dataclass(frozen=True)
class Operation:
    """What one method of one route does."""

    summary: str
    answers: Content
    """The content of status 200."""
    errors: tuple[int, ...] = ALWAYS
    body: type[msgspec.Struct] | None = None
    examples: dict[str, Any] = field(default_factory=dict)
    """Name -> a body that is answered with status 200."""
    others: dict[int, Content] = field(default_factory=dict)
    """Further contents of statuses, besides an error in OpenAI's form."""

    @property
    def open(self) -> bool:
        """Whether it needs no key."""
        return 401 not in self.errors


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Bern"}'},
}
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/completions"): Operation(
        "Continue a text.",
        {JSON: types.Completion, EVENTS: types.CompletionChunk},
        READING,
        CompletionBody,
        {
            "text": {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0},
            "tokens": {"prompt": [5, 6, 7], "max_tokens": 8, "stream": True},
        },
    ),
    ("POST", "/v1/chat/completions"): Operation(
        "Answer a chat.",
        {JSON: types.ChatCompletion, EVENTS: types.ChatCompletionChunk},
        READING,
        ChatBody,
        {
            "chat": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8},
            "tools": {
                "messages": [{"role": "user", "content": "What is the weather in Bern?"}],
                "tools": [WEATHER],
                "tool_choice": "required",
                "max_tokens": 64,
            },
            "result of a call": {
                "messages": [
                    {"role": "user", "content": "What is the weather in Bern?"},
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": CALL["id"], "content": "sunny"},
                ],
                "max_tokens": 8,
            },
        },
    ),
    ("POST", "/generate"): Operation(
        "Continue a text, as FastServe and vLLM's old server do. A stream is JSON objects, each with all the "
        "text so far and followed by a NUL byte.",
        {JSON: types.Generated, STREAM_TYPE: {"type": "string", "format": "binary"}},
        READING,
        GenerateBody,
        {"text": {"prompt": "Once upon a time", "max_tokens": 8}},
    ),
    ("GET", "/v1/models"): Operation("List the model.", {JSON: types.ModelList}),
    ("GET", "/v1/models/{name}"): Operation("Describe the model.", {JSON: types.Model}, (*ALWAYS, 404)),
    **dict.fromkeys(
        [("GET", path) for path in READY],
        Operation(
            "Tell whether requests are served.",
            {JSON: types.Health},
            EVERYWHERE,
            others={503: {JSON: types.Health}},
        ),
    ),
    ("GET", LIVE): Operation(
        "Tell that the server's process answers, whatever its engine does.", {JSON: types.Live}, EVERYWHERE
    ),
    ("POST", "/tokenize"): Operation(
        "Give the token ids of a text or a chat.",
        {JSON: types.Tokenized},
        READING,
        TokenizeBody,
        {"text": {"prompt": "Hello"}},
    ),
    ("POST", "/detokenize"): Operation(
        "Give the text of token ids.",
        {JSON: types.Detokenized},
        READING,
        DetokenizeBody,
        {"tokens": {"tokens": [5, 6, 7]}},
    ),
    ("GET", STATS): Operation(
        "Give the counters and the state of engine and server.", {JSON: {"type": "object"}}
    ),
    ("GET", METRICS): Operation(
        "Give the figures for Prometheus.", {TEXT: {"type": "string"}, OPENMETRICS: {"type": "string"}}
    ),
    ("GET", "/version"): Operation("Give the version.", {JSON: types.Version}),
    ("GET", "/server_info"): Operation("Give the engine's settings.", {JSON: types.ServerInfo}),
    ("GET", "/openapi.json"): Operation("Give this document.", {JSON: {"type": "object"}}),
}
"""The routes, as the application names them."""


async def serve(request: web.Request) -> web.Response:
    """GET /openapi.json."""
    return web.Response(body=encoded(bool(request.app[OPTIONS].keys)), content_type=JSON)


@functools.cache
def encoded(needs_key: bool) -> bytes:
    """Return the document as JSON."""
    return msgspec.json.encode(document(needs_key=needs_key))


def document(*, needs_key: bool = False) -> dict[str, Any]:
    """Return the document, as plain JSON data.

    ``needs_key``: whether the server has keys, of which every request but those for its health needs one.
    """
    kinds = [*_structs(), types.Error]
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    for body in {operation.body for operation in OPERATIONS.values()} - {None}:
        assert body is not None
        schemas[body.__name__] = _body_schema(schemas[body.__name__], body)
    for inner, unsupported in ((Message, OF_MESSAGES), (StreamOptions, OF_STREAM_OPTIONS)):
        schema = schemas[inner.__name__]
        schema["properties"].update(_unsupported(unsupported))
    schemas[Message.__name__]["anyOf"] = CONTENT_OR_CALLS
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(path, operation, needs_key)
    schemes = {KEY: {"type": "http", "scheme": "bearer", "description": "A key of the server."}}
    return {
        "openapi": "3.2.0",
        "info": {
            "title": "FastGen",
            "version": metadata.version(DISTRIBUTION),
            "description": "An engine for language models that preempts at every iteration. A path answers "
            "methods other than those listed with 405 and the header Allow, and requests that are no "
            "acceptable HTTP with 400, 414, 415, 431 or 505.",
        },
        "paths": paths,
        "components": {"schemas": schemas, **({"securitySchemes": schemes} if needs_key else {})},
    }


def _structs() -> Iterator[type[msgspec.Struct]]:
    for operation in OPERATIONS.values():
        if operation.body is not None:
            yield operation.body
        for content in (operation.answers, *operation.others.values()):
            yield from (kind for kind in content.values() if isinstance(kind, type))


def _operation(path: str, operation: Operation, needs_key: bool) -> dict[str, Any]:
    answers = {200: {"description": "The answer.", "content": _content(operation.answers)}}
    for status in operation.errors:
        if status == 401 and not needs_key:
            continue
        content = _content({JSON: types.Error})
        if status in operation.others:
            (other,) = _content(operation.others[status]).values()
            content[JSON] = {"schema": {"anyOf": [other["schema"], content[JSON]["schema"]]}}
        answers[status] = {"description": ERRORS[status], "content": content}
        if status == 429:
            answers[status]["headers"] = {
                "Retry-After": {"required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}
            }
    found: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {str(status): answers[status] for status in sorted(answers)},
    }
    if needs_key and not operation.open:
        found["security"] = [{KEY: []}]
    if "{name}" in path:
        found["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    if operation.body is not None:
        examples = {name: {"value": value} for name, value in operation.examples.items()}
        content = {"schema": _reference(operation.body), "examples": examples}
        found["requestBody"] = {"required": True, "content": {JSON: content}}
    return found


def _content(content: Content) -> dict[str, Any]:
    """Return the schemas of a content; of a stream of events, that of each event."""
    found: Content = {}
    for media_type, kind in content.items():
        schema = _reference(kind) if isinstance(kind, type) else kind
        if media_type == EVENTS:
            body = {"anyOf": [schema, _reference(types.Error)]}
            data = {"type": "string", "contentMediaType": JSON, "contentSchema": body}
            last = {"const": "[DONE]"}
            event = {"type": "object", "properties": {"data": {"anyOf": [data, last]}}, "required": ["data"]}
            found[media_type] = {"itemSchema": event}
        else:
            found[media_type] = {"schema": schema}
    return found


def _reference(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def rules(body: type[msgspec.Struct]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the limits of a body's fields, as ``RULES`` has them."""
    return {**RULES, **WITH_ECHO} if body is CompletionBody else RULES


def _body_schema(schema: dict[str, Any], body: type[msgspec.Struct]) -> dict[str, Any]:
    """Add to the schema of a body what its struct does not express: limits, and fields that are refused."""
    fields: dict[str, Any] = {}
    for name, one in schema["properties"].items():
        fields[name] = _limited(one, rules(body).get(name, {}))
    for name in sorted(ALL_FIELDS - set(fields) - set(NO_EFFECT) - HARMLESS):
        fields[name] = {"type": "null", "description": "A field of another route."}
    others = {name: values for name, values in NO_EFFECT.items() if name not in fields}
    more = {"anyOf": UNLESS_ECHO} if body is CompletionBody else {}
    return {**schema, "properties": {**fields, **_unsupported(others)}, **more}


def _unsupported(fields: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    return {
        name: {"enum": [*neutral, None], "description": "Not supported: no other value."}
        for name, neutral in fields.items()
    }


def _limited(schema: Mapping[str, Any], limits: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Add limits to the schema, or to those of its alternatives that have the types."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [_limited(one, limits) for one in schema["anyOf"]]}
    return {**schema, **limits.get(schema.get("type", ""), {})}
