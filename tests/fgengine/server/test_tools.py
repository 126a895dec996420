"""Calls of functions: from a real engine in its own process, and what bodies with tools may cost."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import pytest

from fgengine.invalid_param import InvalidParam
from fgengine.server.encoding import Encoder
from fgengine.server.schemas import BadRequestError
from fgengine.server.structured import StructuredBody
from fgengine.server.text_worker import Answering, EncodeChat, Refused
from fgengine.server.tools import Function, NamedFunction, NamedTool, Tool, wanted_calls

CHATS = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 2},
        "unit": {"enum": ["C", "F", None]},
        "near": {"$ref": "#/$defs/point"},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
    "$defs": {
        "point": {
            "type": "object",
            "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"weather": PARAMETERS, "now": NOTHING}


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


TOOLS = [tool("weather", parameters=PARAMETERS, strict=True), tool("now", description="the time")]
WEATHER = tool("weather")


@pytest.mark.slow
class TestWithAnEngine:
    """The model's weights are random, so only the grammar makes the calls."""

    @pytest.fixture
    def encoder(self, engine_encoder: Encoder) -> Encoder:
        return engine_encoder

    async def test_arguments_follow_the_schema_at_a_high_temperature(self, serving: Any) -> None:
        async with serving(policy="sj-mlfq", max_batch_size=8) as (url, session):

            async def choices(**body: Any) -> list[dict[str, Any]]:
                asked = {"messages": MESSAGES, "tools": TOOLS, "temperature": 2.0, "seed": 1, **body}
                async with session.post(url + CHATS, json={"max_tokens": 1200, **asked}) as response:
                    answer = await response.json()
                    assert response.status == 200, answer
                return list(answer["choices"])

            async def streamed(**body: Any) -> list[dict[str, Any]]:
                asked = {"messages": MESSAGES, "tools": TOOLS, "temperature": 2.0, "seed": 1, "stream": True}
                async with session.post(url + CHATS, json={"max_tokens": 1200, **asked, **body}) as response:
                    return joined(await response.text(), body.get("n", 1))

            ids: list[str] = []
            ends = []
            for more in ({"parallel_tool_calls": False}, {}):
                answers = await choices(tool_choice="required", n=6, **more)
                for choice in answers:
                    ends.append(choice["finish_reason"])
                    calls = choice["message"]["tool_calls"]
                    assert choice["message"]["content"] is None
                    ids += [call["id"] for call in calls]
                    assert len(calls) <= (1 if more else 16)
                    complete = calls if choice["finish_reason"] == "tool_calls" else calls[:-1]
                    for call in complete:
                        function = call["function"]
                        jsonschema.validate(json.loads(function["arguments"]), SCHEMAS[function["name"]])
                assert [plain(one) for one in await streamed(tool_choice="required", n=6, **more)] == [
                    plain(one) for one in answers
                ]
            assert len(set(ids)) == len(ids)
            assert set(ends) <= {"tool_calls", "length"}
            assert ends.count("tool_calls") > 6

            answers = await choices(tool_choice=WEATHER, n=4, logprobs=True)
            for choice in answers:
                assert choice["finish_reason"] == "stop"
                (call,) = choice["message"]["tool_calls"]
                assert call["function"]["name"] == "weather"
                jsonschema.validate(json.loads(call["function"]["arguments"]), PARAMETERS)
                *listed, _eos = choice["logprobs"]["content"]
                assert (
                    b"".join(bytes(token["bytes"]) for token in listed).decode()
                    == (call["function"]["arguments"])
                )
            assert [plain(one) for one in await streamed(tool_choice=WEATHER, n=4)] == [
                plain(one) for one in answers
            ]
            for choice in await choices(tool_choice=tool("now")):
                assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {}

            whole = (await choices(tool_choice="required"))[0]["message"]["tool_calls"][0]["function"]
            for most in (1, 12, 30, 45):
                (short,) = await choices(tool_choice="required", max_tokens=most)
                assert short["finish_reason"] == "length"
                for call in short["message"].get("tool_calls", ())[:1]:
                    assert call["function"]["name"] == whole["name"]
                    assert whole["arguments"].startswith(call["function"]["arguments"])
            (cut,) = await choices(tool_choice=WEATHER, stop='"city')
            assert cut["message"]["tool_calls"][0]["function"]["arguments"].strip() == "{"
            assert cut["finish_reason"] == "stop"
            (cut,) = await choices(tool_choice="required", stop='"arguments')
            assert (cut["finish_reason"], "tool_calls" in cut["message"]) == ("stop", False)

    async def test_with_openais_client(self, serving: Any) -> None:
        reason = "OpenAI's client is no part of our development tools: pip install openai"
        openai = pytest.importorskip("openai", reason=reason)
        async with (
            serving(policy="fcfs") as (url, _),
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
        ):
            create = client.chat.completions.create
            asked: dict[str, Any] = {
                "model": "",
                "messages": MESSAGES,
                "tools": TOOLS,
                "temperature": 2.0,
                "seed": 3,
                "max_tokens": 1200,
            }
            for choice in ("required", WEATHER):
                whole = (await create(**asked, tool_choice=choice)).choices[0]
                assert whole.message.tool_calls
                assert whole.message.content is None
                for call in whole.message.tool_calls:
                    jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
                async with client.chat.completions.stream(**asked, tool_choice=choice) as stream:
                    final = (await stream.get_final_completion()).choices[0]
                assert final.finish_reason == whole.finish_reason
                assert [call.function.arguments for call in final.message.tool_calls] == [
                    call.function.arguments for call in whole.message.tool_calls
                ]
                results = [
                    {"role": "tool", "tool_call_id": call.id, "content": "7"}
                    for call in whole.message.tool_calls
                ]
                later = [*MESSAGES, whole.message, *results]
                answer = await create(**{**asked, "messages": later, "max_tokens": 3}, tool_choice="none")
                assert answer.choices[0].message.tool_calls is None
            with pytest.raises(openai.BadRequestError, match="tool_choice"):
                await create(**asked)


def plain(choice: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """Return what two answers with one seed share."""
    calls = [call["function"] for call in choice["message"].get("tool_calls", ())]
    return choice["finish_reason"], [(call["name"], call["arguments"]) for call in calls]


def joined(text: str, n: int) -> list[dict[str, Any]]:
    """Return the choices of a stream, joined as OpenAI's documentation says."""
    found: list[dict[str, Any]] = [{"message": {}, "finish_reason": None} for _ in range(n)]
    for line in text.split("\n\n")[:-2]:
        (part,) = json.loads(line.removeprefix("data: "))["choices"]
        choice = found[part["index"]]
        assert choice["finish_reason"] is None
        choice["finish_reason"] = part["finish_reason"]
        assert part["delta"].get("content") is None
        for delta in part["delta"].get("tool_calls", ()):
            calls = choice["message"].setdefault("tool_calls", [])
            if delta["index"] == len(calls):
                calls.append({"id": delta["id"], "type": delta["type"], "function": delta["function"]})
            else:
                assert set(delta) == {"index", "function"}
                calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    return found


async def refused(served: Any, param: str, path: str = CHATS, **body: Any) -> str:
    status, answer = await served.post(path, {"messages": MESSAGES, "max_tokens": 3, **body})
    assert (status, answer["error"]["param"]) == (400, param), answer
    return str(answer["error"]["message"])


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"tools": {}}, "tools", "must be a list"),
        ({"tools": [1]}, "tools[0]", "is 1"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", 'is "custom", but it must be function'),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "is missing"),
        (
            {"tools": [tool("f"), {**tool("g"), "functions": 1}]},
            "tools[1].functions",
            "did you mean function",
        ),
        ({"tools": [tool("f", paramters={})]}, "tools[0].function.paramters", "did you mean parameters"),
        ({"tools": [tool("f", parameters=[])]}, "tools[0].function.parameters", "is a list"),
        *(
            ({"tools": [tool(name)]}, "tools[0].function.name", "must be a text")
            for name in ("", "a b", "é", "a" * 65, "a\n", 'a"')
        ),
        ({"tools": [tool("f", parameters={"type": "array"})]}, "tools[0].function.parameters.type", "object"),
        ({"tool_choice": "any"}, "tool_choice", "any"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "is missing"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type", "allowed_tools"),
        ({"tool_choice": tool("nothing")}, "tool_choice", "'nothing', which is not in tools"),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls", "true or false"),
    ],
)
async def test_what_is_wrong_is_named(served: Any, body: dict[str, Any], param: str, said: str) -> None:
    asked = {"tools": [tool("f")], "tool_choice": "required", **body}
    assert said in await refused(served, param, **asked)
    if "tools" in body and "parameters.type" not in param:
        assert said in await refused(served, param, "/tokenize", tools=body["tools"], max_tokens=None)
    assert not served.engine.params


def assistant(**call: Any) -> dict[str, Any]:
    made = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}, **call}
    return {"role": "assistant", "tool_calls": [made]}


@pytest.mark.parametrize(
    ("message", "param", "said"),
    [
        (assistant(type="custom"), "messages[0].tool_calls[0].type", "must be function"),
        (assistant(id=None), "messages[0].tool_calls[0].id", "must be a text"),
        (assistant(function={"name": "f"}), "messages[0].tool_calls[0].function.arguments", "is missing"),
        (assistant(function={"nam": "f"}), "messages[0].tool_calls[0].function.nam", "did you mean name"),
        *(
            (
                assistant(function={"name": "f", "arguments": text}),
                "messages[0].tool_calls[0].function.arguments",
                "must be the text of a JSON object",
            )
            for text in ("{", "[]", "1", "null", "{} {}", '{"a": NaN}', '{"a":' * 5000 + "1" + "}" * 5000)
        ),
        ({"role": "assistant", "tool_calls": []}, "messages[0].content", "is missing"),
        ({"role": "tool", "tool_call_id": "1"}, "messages[0].content", "is missing"),
        ({"role": "user", "content": "a", "tool_calls": [{}]}, "messages[0].tool_calls", "an assistant's"),
        ({"role": "user", "content": "a", "tool_call_id": "1"}, "messages[0].tool_call_id", "a tool's"),
        ({**assistant(), "tool_calls": assistant()["tool_calls"] * 129}, "messages[0].tool_calls", "<= 128"),
    ],
)
async def test_what_is_wrong_in_a_message_is_named(
    served: Any, message: dict[str, Any], param: str, said: str
) -> None:
    assert said in await refused(served, param, messages=[message])
    assert said in await refused(served, param, "/tokenize", messages=[message], max_tokens=None)


async def test_the_template_gets_calls_as_other_servers_give_them(served: Any) -> None:
    async def prompt(*messages: dict[str, Any]) -> bytes:
        status, answer = await served.post("/tokenize", {"messages": list(messages)})
        assert status == 200, answer
        return bytes(answer["tokens"])

    large = {"name": "f", "arguments": f'{{"a": {10**30}, "é": "\\u00e9", "b": [1.0, null]}}'}
    call = {"id": "1", "type": "function", "index": 0, "function": large}
    sent = {"role": "assistant", "tool_calls": [call], "refusal": None, "content": "x"}
    assert (await prompt(sent)).decode() == f"<assistant>x{{1 f a={10**30} é=é b=[1.0, None]}}<assistant>"
    for empty in ("", "{}", " {} "):
        assert await prompt(assistant(function={"name": "f", "arguments": empty})) == (
            b"<assistant>{1 f}<assistant>"
        )
    assert await prompt({"role": "tool", "content": "x"}) == b"<tool>x<assistant>"


async def test_integers_of_any_size_in_a_schema(served: Any) -> None:
    large = tool("f", parameters={"type": "object", "properties": {"a": {"enum": [10**30]}}})
    status, answer = await served.post("/tokenize", {"messages": MESSAGES, "tools": [large]})
    assert status == 200, answer
    status, answer = await served.post(
        CHATS, {"messages": MESSAGES, "tools": [large], "tool_choice": "required", "max_tokens": 3}
    )
    assert status in (200, 400), answer


async def test_tokenize_refuses_tools_without_messages(served: Any) -> None:
    status, answer = await served.post("/tokenize", {"prompt": "a", "tools": [tool("f")]})
    assert (status, answer["error"]["param"]) == (400, "tools")
    assert (await served.post("/tokenize", {"prompt": "a", "tools": []}))[0] == 200


def nested(depth: int) -> str:
    return '{"a":' * depth + "{}" + "}" * depth


async def test_deep_nesting_ends_in_an_error_and_not_in_a_failure(served: Any) -> None:
    headers = {"Content-Type": "application/json"}
    chat = json.dumps(MESSAGES)
    called = json.dumps([assistant(function={"name": "f", "arguments": "@"})])
    statuses = set()
    for depth in (*range(100, 880, 100), *range(880, 1010, 4)):
        schema = f'{{"type": "function", "function": {{"name": "f", "parameters": {nested(depth)}}}}}'
        calls = called.replace('"@"', json.dumps(nested(depth)))
        for path, raw in (
            (
                CHATS,
                f'{{"messages": {chat}, "tools": [{schema}], "tool_choice": "required", "max_tokens": 1}}',
            ),
            ("/tokenize", f'{{"messages": {chat}, "tools": [{schema}]}}'),
            ("/tokenize", f'{{"messages": {calls}}}'),
        ):
            async with served.session.post(served.url + path, data=raw, headers=headers) as response:
                answer = await response.json()
            assert response.status in (200, 400), (path, depth, answer)
            statuses.add(response.status)
    assert statuses == {200, 400}
    assert served.service.counters.requests_failed == 0


async def test_each_part_of_the_server_refuses_deep_nesting_by_itself(encoder: Encoder) -> None:
    """How deep is too deep depends on Python's version, and on the depth of the calls."""
    deep: dict[str, Any] = {}
    for _ in range(20_000):
        deep = {"a": deep}
    made = Tool("function", Function("f", parameters={"type": "object", "a": deep}))
    for choice in ("required", "none", NamedTool("function", NamedFunction("f"))):
        with pytest.raises(InvalidParam, match=r"^tools is nested too deeply"):
            wanted_calls([made], choice, None)
    with pytest.raises(InvalidParam, match=r"^guided_json is nested too deeply"):
        StructuredBody(guided_json=deep).grammar()
    with pytest.raises(BadRequestError, match="the chat is nested too deeply"):
        await encoder.chat([assistant(function={"name": "f", "arguments": deep})])
    job = EncodeChat(f'[{{"a": {nested(20_000)}}}]'.encode(), b"[]", 100, 100, 1.0)
    answer = Answering(encoder.codec).answer(job)
    assert answer == Refused("this chat is nested too deeply: send one with less nesting")


async def test_limits_come_before_costs(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools that are too many or too long reach neither the template nor the check of grammars."""
    for name in ("chat", "check"):
        monkeypatch.setattr(served.service.encoder, name, None)
    began = time.process_time()
    for tools in (
        [tool(f"f{number}") for number in range(5000)],
        [tool(f"f{number}", **{f"x{n}": 1 for n in range(100)}) for number in range(128)],
        [tool("f", parameters={"enum": ["a" * 100] * 4000})],
        [tool("f")] * 128,
    ):
        for choice in ("required", "none", tool("f")):
            status, _ = await served.post(
                CHATS, {"messages": MESSAGES, "tools": tools, "tool_choice": choice}
            )
            assert status == 400
        status, _ = await served.post("/tokenize", {"messages": MESSAGES, "tools": tools})
        assert status == 400
    assert time.process_time() - began < 3


async def test_long_arguments_of_calls_count_as_the_chat(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.service.encoder, "_ask", None)
    long = json.dumps({"a": "x" * served.service.encoder.max_characters})
    message = assistant(function={"name": "f", "arguments": long})
    assert "the prompt has" in await refused(served, "messages", messages=[message])


async def test_a_stream_of_calls_has_usage_and_an_end(served: Any, fake: Any) -> None:
    async def prompt(*_: Any) -> list[int]:
        return [*b'[{"name": "f", "arguments": {"a": "\xc3\xa9"}}]', fake.EOS]

    served.service.encoder = _Answering(served.service.encoder, prompt)
    body = {
        "messages": MESSAGES,
        "tools": [tool("f", parameters={"type": "object"})],
        "tool_choice": "required",
        "n": 2,
        "max_tokens": 100,
        "stream_options": {"include_usage": True},
    }
    messages = await served.stream(CHATS, body, b"\n\n")
    chunks = [json.loads(message[6:]) for message in messages[:-1]]
    assert [chunk["choices"] for chunk in chunks[-1:]] == [[]]
    assert chunks[-1]["usage"]["completion_tokens"] == 2 * len(await prompt())
    without_usage = b"\n\n".join([*messages[:-2], messages[-1], b""])
    for choice in joined(without_usage.decode(), 2):
        assert plain(choice) == ("tool_calls", [("f", '{"a": "é"}')])


class _Answering:
    """An encoder whose chats are what the fake engine is to answer."""

    def __init__(self, encoder: Encoder, chat: Any) -> None:
        self._encoder, self.chat = encoder, chat

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


@pytest.mark.slow
async def test_a_hostile_schema_of_a_function_is_refused(served: Any) -> None:
    hostile = tool("f", parameters={"type": "object", "properties": {"a": {"multipleOf": 9_999_999}}})
    hostile["function"]["parameters"]["properties"]["a"]["type"] = "integer"
    for choice in ("required", WEATHER):
        tools = [*TOOLS, hostile]
        body = {"messages": MESSAGES, "tools": tools, "tool_choice": choice, "max_tokens": 3}
        status, answer = await served.post(CHATS, body)
        if choice == "required":
            assert (status, answer["error"]["param"]) == (400, "tools")
        else:
            assert status == 200
