"""GET /openapi.json: it lists all routes, and what it promises is true."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import pytest
import schemathesis

from fgengine.server import answer_types as types
from fgengine.server import openapi
from fgengine.server.app import make_app
from fgengine.server.client import EngineClient
from fgengine.server.fields import NO_EFFECT
from fgengine.server.generation import Service

POSTED = {path: operation for (method, path), operation in openapi.OPERATIONS.items() if method == "POST"}
WHERE = "OPERATIONS in fgengine/server/openapi.py"


async def test_the_document_has_exactly_the_routes_of_the_application() -> None:
    app = make_app(Service(EngineClient()))
    routes = set()
    for route in app.router.routes():
        assert route.resource is not None
        if route.method != "HEAD":  # aiohttp adds it to each GET
            routes.add((route.method, route.resource.canonical))
    described = set(openapi.OPERATIONS)
    for method, path in routes - described:
        pytest.fail(f"{method} {path} is a route without an entry: describe it in {WHERE}")
    for method, path in described - routes:
        pytest.fail(f"{method} {path} is no route of the application: remove it from {WHERE}")


async def test_it_is_served_and_valid(served: Any) -> None:
    status, document = await served.get("/openapi.json")
    assert status == 200
    schemathesis.openapi.from_dict(document).validate()
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_route_that_takes_a_body_has_an_example() -> None:
    for path, operation in POSTED.items():
        assert operation.body is not None, f"give {path} a body in {WHERE}"
        assert operation.examples, f"give {path} an example in {WHERE}"


async def test_the_examples_are_answered(served: Any) -> None:
    for path, operation in POSTED.items():
        schema = {**_component(operation.body), "components": openapi.document()["components"]}
        for name, body in operation.examples.items():
            jsonschema.Draft202012Validator(schema).validate(body)
            async with served.session.post(served.url + path, json=body) as response:
                assert response.status == 200, f"example {name} of {path}: {await response.text()}"


def _component(kind: Any) -> dict[str, Any]:
    return dict(openapi.document()["components"]["schemas"][kind.__name__])


ITEMS = {"stop": "a", "stop_token_ids": 1, "guided_choice": "a", "messages": {"role": "user", "content": "a"}}
"""A valid item of each field that may be a list."""


def _outside(field: str, limits: dict[str, Any]) -> list[Any]:
    """Return a value on the wrong side of each limit."""
    found: list[Any] = []
    for name, limit in limits.items():
        if name in ("minimum", "minLength", "minItems"):
            found.append(limit - 1)
        elif name in ("maximum", "maxLength", "maxItems"):
            found.append(limit + 1)
        elif name == "exclusiveMinimum":
            found.append(limit)
        if name.endswith("Length"):
            found[-1] *= "a"
        elif name.endswith("Items"):
            found[-1] *= [ITEMS[field]]
        elif name == "items":
            found += [[value] for value in _outside(field, limit)]
    return found


def _on(limits: dict[str, Any]) -> list[Any]:
    """Return a value on each limit that a number has."""
    return [limits[name] for name in ("minimum", "maximum") if name in limits]


@pytest.mark.parametrize("field", list(openapi.RULES))
async def test_the_limits_of_fields_are_true(served: Any, field: str) -> None:
    path = next(path for path, one in POSTED.items() if field in one.body.__struct_fields__)  # type: ignore[union-attr]
    body = {**next(iter(POSTED[path].examples.values())), "stream": False}
    body.pop("max_tokens")
    for limits in openapi.RULES[field].values():
        assert _outside(field, limits)
        for value in _outside(field, limits):
            status, answer = await served.post(path, {**body, field: value})
            assert status == 400, f"{field}={value!r:.100} is outside its limits and was answered {status}"
            assert answer["error"]["param"]
        for value in _on(limits):
            status, answer = await served.post(path, {**body, field: value})
            assert status == 200, f"{field}={value!r:.100} is within its limits and was refused: {answer}"


async def test_a_field_that_is_refused_has_the_values_without_effect(served: Any) -> None:
    for path, operation in POSTED.items():
        assert operation.body is not None
        body = dict(next(iter(operation.examples.values())))
        if "stream" in operation.body.__struct_fields__:
            body["stream"] = False
        properties = _component(operation.body)["properties"]
        unsupported = {name for name, schema in properties.items() if "enum" in schema}
        assert unsupported == set(NO_EFFECT) - set(operation.body.__struct_fields__)
        for name in unsupported:
            for value in properties[name]["enum"]:
                status, answer = await served.post(path, {**body, name: value})
                assert status == 200, f"{path} {name}={value}: {answer}"
        for name, schema in properties.items():
            if schema.get("type") == "null":
                assert (await served.post(path, {**body, name: 1}))[0] == 400


def _parsed(message: bytes) -> Any:
    return json.loads(message.removeprefix(b"data: "))


@pytest.mark.parametrize("more", [{}, {"logprobs": 1}, {"stream_options": {"include_usage": True}}])
async def test_completions_have_the_described_form(served: Any, more: dict[str, Any]) -> None:
    body = {"prompt": "abc", "max_tokens": 3, **more}
    if "stream_options" not in more:
        msgspec.convert((await served.post("/v1/completions", body))[1], types.Completion)
    *messages, done = await served.stream("/v1/completions", body, b"\n\n")
    assert done == b"data: [DONE]"
    for message in messages:
        msgspec.convert(_parsed(message), types.CompletionChunk)


@pytest.mark.parametrize("more", [{}, {"logprobs": True}, {"stream_options": {"include_usage": True}}])
async def test_chats_have_the_described_form(served: Any, more: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 3, **more}
    if "stream_options" not in more:
        msgspec.convert((await served.post("/v1/chat/completions", body))[1], types.ChatCompletion)
    *messages, done = await served.stream("/v1/chat/completions", body, b"\n\n")
    assert done == b"data: [DONE]"
    for message in messages:
        msgspec.convert(_parsed(message), types.ChatCompletionChunk)


async def test_other_answers_have_the_described_form(served: Any) -> None:
    msgspec.convert((await served.post("/generate", {"prompt": "abc"}))[1], types.Generated)
    last = (await served.stream("/generate", {"prompt": "abc"}, b"\0"))[-1]
    msgspec.convert(json.loads(last), types.Generated)
    for path, kind in (
        ("/v1/models", types.ModelList),
        ("/v1/models/fake", types.Model),
        ("/health", types.Health),
        ("/version", types.Version),
        ("/server_info", types.ServerInfo),
    ):
        msgspec.convert((await served.get(path))[1], kind)
    msgspec.convert((await served.get("/nothing"))[1], types.Error)


async def test_a_stream_of_json_texts_is_not_called_json(served: Any) -> None:
    body = {"prompt": "abc", "stream": True}
    async with served.session.post(served.url + "/generate", json=body) as response:
        assert response.content_type == "application/octet-stream"
