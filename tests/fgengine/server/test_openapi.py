"""GET /openapi.json: it lists all routes, and what it promises is true."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, get_args, get_type_hints

import aiohttp
import jsonschema
import msgspec
import pytest
import schemathesis

from fgengine.server import answer_types as types
from fgengine.server import openapi
from fgengine.server.app import make_app
from fgengine.server.client import EngineClient, State
from fgengine.server.connections import Timeouts
from fgengine.server.fields import NO_EFFECT
from fgengine.server.generation import Service
from fgengine.server.options import ServerOptions

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
        for name, body in operation.examples.items():
            _validator(operation.body).validate(body)
            async with served.session.post(served.url + path, json=body) as response:
                assert response.status == 200, f"example {name} of {path}: {await response.text()}"


def _component(kind: Any) -> dict[str, Any]:
    return dict(openapi.document()["components"]["schemas"][kind.__name__])


def _validator(kind: Any) -> jsonschema.Draft202012Validator:
    schema = {**_component(kind), "components": openapi.document()["components"]}
    return jsonschema.Draft202012Validator(schema)


def _has_form(value: Any, kind: Any) -> None:
    """Check that an answer has the form of a struct, and no field that the struct lacks."""

    def compare(one: Any, described: Any, where: str) -> None:
        if isinstance(one, dict):
            for name, inner in one.items():
                assert name in described, f"{where}{name} is no field of {kind.__name__}"
                compare(inner, described[name], f"{where}{name}.")
        elif isinstance(one, list):
            for inner, other in zip(one, described, strict=True):
                compare(inner, other, where)

    compare(value, msgspec.to_builtins(msgspec.convert(value, kind)), "")


ITEMS = {
    "stop": "a",
    "stop_token_ids": 1,
    "guided_choice": "a",
    "messages": {"role": "user", "content": "a"},
    "tools": {"type": "function", "function": {"name": "f"}},
}
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
    await _try_limits(served, path, field, openapi.RULES[field])


@pytest.mark.parametrize("field", openapi.LENGTHS)
async def test_the_limits_of_a_completion_with_echo_are_true(served: Any, field: str) -> None:
    body = {"prompt": "a", "echo": True}
    limits = openapi.rules(openapi.CompletionBody)[field]
    await _try_limits(served, "/v1/completions", field, limits, {"echo": True})
    validator = _validator(openapi.CompletionBody)
    assert validator.is_valid({**body, field: 0})
    for echo in ({}, {"echo": None}, {"echo": False}):
        body = {"prompt": "a", **echo}
        assert validator.is_valid({**body, field: 1})
        assert validator.is_valid({**body, field: None})
        assert not validator.is_valid({**body, field: 0})
        status, answer = await served.post("/v1/completions", {**body, field: 0})
        assert (status, answer["error"]["param"]) == (400, field)


async def _try_limits(
    served: Any, path: str, field: str, rules: dict[str, Any], more: dict[str, Any] | None = None
) -> None:
    body = {**next(iter(POSTED[path].examples.values())), "stream": False, **(more or {})}
    body.pop("max_tokens")
    for limits in rules.values():
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
        _has_form((await served.post("/v1/completions", body))[1], types.Completion)
    *messages, done = await served.stream("/v1/completions", body, b"\n\n")
    assert done == b"data: [DONE]"
    for message in messages:
        _has_form(_parsed(message), types.CompletionChunk)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"logprobs": True},
        {"stream_options": {"include_usage": True}},
        {"tools": [ITEMS["tools"]], "tool_choice": ITEMS["tools"]},
        {"tools": [ITEMS["tools"]], "tool_choice": "required", "logprobs": True},
    ],
)
async def test_chats_have_the_described_form(served: Any, more: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 3, **more}
    if "stream_options" not in more:
        _has_form((await served.post("/v1/chat/completions", body))[1], types.ChatCompletion)
    *messages, done = await served.stream("/v1/chat/completions", body, b"\n\n")
    assert done == b"data: [DONE]"
    for message in messages:
        _has_form(_parsed(message), types.ChatCompletionChunk)


async def test_other_answers_have_the_described_form(served: Any) -> None:
    _has_form((await served.post("/generate", {"prompt": "abc"}))[1], types.Generated)
    last = (await served.stream("/generate", {"prompt": "abc"}, b"\0"))[-1]
    _has_form(json.loads(last), types.Generated)
    for path, kind in (
        ("/v1/models", types.ModelList),
        ("/v1/models/fake", types.Model),
        ("/health", types.Health),
        ("/version", types.Version),
        ("/server_info", types.ServerInfo),
    ):
        _has_form((await served.get(path))[1], kind)
    _has_form((await served.get("/nothing"))[1], types.Error)


async def test_a_stream_of_json_texts_is_not_called_json(served: Any) -> None:
    body = {"prompt": "abc", "stream": True}
    async with served.session.post(served.url + "/generate", json=body) as response:
        assert response.content_type == "application/octet-stream"


def test_the_states_of_the_health_have_their_names_from_the_engine() -> None:
    hints = get_type_hints(types.Health)
    assert set(get_args(hints["status"])) == {*get_args(State), "draining"}
    assert {"starting", "ready", "draining", "hung", "broken", "stopping"} <= set(get_args(hints["status"]))


KEY = "k-1"


@asynccontextmanager
async def _asked(served: Any, needs_key: bool) -> AsyncIterator[tuple[Any, dict[str, Any]]]:
    """Give a function that sends the request of an operation, and the document of the server."""
    key = {"Authorization": f"Bearer {KEY}"} if needs_key else {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        async with session.get(served.url + "/openapi.json", headers=key) as response:
            document = await response.json()

        async def ask(method: str, path: str, **more: str) -> tuple[int, Any, str]:
            headers = {**key, **{name.replace("_", "-"): value for name, value in more.items()}}
            operation = openapi.OPERATIONS[method, path]
            body = next(iter(operation.examples.values()), None)
            url = served.url + path.replace("{name}", "fake")
            async with session.request(method, url, json=body, headers=headers) as response:
                return response.status, await response.read(), response.content_type

        yield ask, document


def _is_promised(document: dict[str, Any], method: str, path: str, answer: tuple[int, Any, str]) -> int:
    status, raw, media_type = answer
    promised = document["paths"][path][method.lower()]["responses"]
    where = f"{method} {path} was answered {status} {raw[:300]!r}"
    assert str(status) in promised, f"{where}: {status} is not in the document"
    assert media_type in promised[str(status)]["content"], f"{where}: {media_type} is not in the document"
    if media_type == openapi.JSON:
        schema = promised[str(status)]["content"][media_type]["schema"]
        jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(
            json.loads(raw)
        )
    return status


with_and_without_key = pytest.mark.parametrize(
    "server_options",
    [ServerOptions(), ServerOptions(api_key=KEY)],
    ids=["no key", "key"],
)


@with_and_without_key
@pytest.mark.parametrize("state", ["ready", "draining", "starting", "hung", "broken", "stopping", "full"])
async def test_answers_of_a_server_in_any_state_are_promised(
    served: Any, server_options: ServerOptions, state: Any
) -> None:
    async with _asked(served, bool(server_options.keys)) as (ask, document):
        engine = served.service.engine
        if state == "full":
            served.connections.limit = 0
        elif state == "draining":
            served.service.draining = True
        else:
            engine.state = state
        statuses = {
            operation: _is_promised(document, *operation, await ask(*operation))
            for operation in openapi.OPERATIONS
        }
        engine.state = "ready"
    served_then = 200 if state == "ready" else 503
    assert statuses["POST", "/v1/completions"] == served_then
    assert statuses["GET", "/health"] == (200 if state == "full" else served_then)
    assert statuses["GET", "/version"] == (503 if state == "full" else 200)


@with_and_without_key
async def test_refusals_of_the_gate_are_promised(served: Any, server_options: ServerOptions) -> None:
    needs_key = bool(server_options.keys)
    async with _asked(served, needs_key) as (ask, document):
        for operation in openapi.OPERATIONS:
            free = operation[1].startswith("/health")
            for headers, status in (
                ({"Host": "evil.example"}, 403),
                ({"Origin": "http://evil.example"}, 403),
                ({"Authorization": "Bearer wrong"}, 401 if needs_key else 200),
            ):
                found = _is_promised(document, *operation, await ask(*operation, **headers))
                assert found == (200 if free else status)
            responses = document["paths"][operation[1]][operation[0].lower()]["responses"]
            assert ("401" in responses) == (needs_key and not free)
            assert ("403" in responses) == (not free)


@with_and_without_key
async def test_the_document_says_where_a_key_is_needed(served: Any, server_options: ServerOptions) -> None:
    needs_key = bool(server_options.keys)
    async with _asked(served, needs_key) as (_, document):
        schemes = document["components"].get("securitySchemes", {})
        assert [(one["type"], one["scheme"]) for one in schemes.values()] == [("http", "bearer")] * needs_key
        for path, methods in document["paths"].items():
            for operation in methods.values():
                wanted = [{name: []} for name in schemes] if not path.startswith("/health") else []
                assert operation.get("security", []) == wanted
        schemathesis.openapi.from_dict(document).validate()


async def test_late_requests_are_promised(served: Any) -> None:
    served.connections.timeouts = Timeouts(head=0.3, body=0.3)
    document = openapi.document()

    async def late(method: str, path: str) -> None:
        reader, writer = await asyncio.open_connection(*served.url.removeprefix("http://").split(":"))
        head = f"{method} {path.replace('{name}', 'fake')} HTTP/1.1\r\nHost: localhost\r\n"
        head += "Content-Length: 9\r\n\r\n{" if method == "POST" else ""
        writer.write(head.encode())
        raw = await reader.read()
        writer.close()
        status, body = int(raw.split(b" ", 2)[1]), raw.partition(b"\r\n\r\n")[2]
        assert _is_promised(document, method, path, (status, body, openapi.JSON)) == 408

    await asyncio.gather(*(late(*operation) for operation in openapi.OPERATIONS))
