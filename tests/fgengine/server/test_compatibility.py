"""docs/openai.md: each of its rows is checked here."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fgengine.scheduling.refusal import QueueFull

PAGE = Path(__file__).parents[3] / "docs/openai.md"
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
Check = Callable[..., Awaitable[None]]
CHECKS: dict[str, Check] = {}
"""The check of each row, by its first cell."""


def row(title: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        assert title not in CHECKS
        CHECKS[title] = check
        return check

    return add


async def completion(served: Any, **body: Any) -> dict[str, Any]:
    status, answer = await served.post(COMPLETIONS, {"prompt": "ab", "max_tokens": 3, **body})
    assert status == 200, answer
    return dict(answer)


async def chat(served: Any, **body: Any) -> dict[str, Any]:
    status, answer = await served.post(CHATS, {"messages": MESSAGES, "max_tokens": 3, **body})
    assert status == 200, answer
    return dict(answer)


async def refused(served: Any, path: str, param: str, status: int = 400, **body: Any) -> dict[str, Any]:
    """Check that a request is refused and that the error names the field; return the error."""
    text = {"messages": MESSAGES} if path == CHATS else {"prompt": "ab"}
    found, answer = await served.post(path, {**text, "max_tokens": 3, **body})
    assert (found, answer["error"]["param"]) == (status, param), answer
    assert answer["error"]["type"] == "invalid_request_error"
    return dict(answer["error"])


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


async def streamed(served: Any, path: str, **body: Any) -> list[dict[str, Any]]:
    messages = await served.stream(path, body, b"\n\n")
    assert messages[-1] == b"data: [DONE]"
    return [json.loads(message[6:]) for message in messages[:-1]]


def titles() -> list[str]:
    found = re.findall(r"^\| (.+?) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    return [title for title in found if title not in ("Feature", "Code")]


def test_every_row_has_a_check() -> None:
    assert titles() == list(CHECKS)


@row("`/v1/completions`, `/v1/chat/completions`")
async def both_routes(served: Any) -> None:
    assert texts(await completion(served)) == ["aba"]
    answer = await chat(served)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "<us"}
    chunks = await streamed(served, COMPLETIONS, prompt="ab", max_tokens=3)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "aba"
    chunks = await streamed(served, CHATS, messages=MESSAGES, max_tokens=3)
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "<us"


@row("`prompt`")
async def prompt(served: Any) -> None:
    for same in ("ab", [97, 98], ["ab"], [[97, 98]]):
        assert texts(await completion(served, prompt=same)) == ["aba"]


@row("several prompts")
async def several_prompts(served: Any) -> None:
    for prompts in (["ab", "x"], [[97, 98], [120]]):
        assert texts(await completion(served, prompt=prompts, n=2)) == ["aba", "aba", "xxx", "xxx"]


@row("`n`")
async def n(served: Any) -> None:
    assert texts(await completion(served, n=2)) == ["aba", "aba"]
    assert [choice["index"] for choice in (await chat(served, n=3))["choices"]] == [0, 1, 2]
    assert len(served.engine.params) == 5
    await refused(served, CHATS, "n", n=129)


@row("`best_of`")
async def best_of(served: Any) -> None:
    answer = await completion(served, best_of=3)
    assert (len(answer["choices"]), answer["usage"]["completion_tokens"]) == (1, 9)
    await refused(served, COMPLETIONS, "best_of", best_of=2, stream=True)


@row("`echo`")
async def echo(served: Any) -> None:
    answer = await completion(served, echo=True, logprobs=1)
    assert texts(answer) == ["ababa"]
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5]


@row("`echo` with `max_tokens` 0")
async def echo_alone(served: Any) -> None:
    answer = await completion(served, echo=True, logprobs=1, max_tokens=0)
    assert texts(answer) == ["ab"]
    assert answer["choices"][0]["logprobs"]["tokens"] == ["a", "b"]
    await refused(served, COMPLETIONS, "max_tokens", max_tokens=0)
    served.limit_length(5)
    full = await completion(served, echo=True, logprobs=1, max_tokens=0, prompt="abcde")
    assert full["choices"][0]["logprobs"]["tokens"] == list("abcde")
    assert full["usage"] == {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}
    await refused(served, COMPLETIONS, "prompt", echo=True, max_tokens=1, prompt="abcde")
    await refused(served, COMPLETIONS, "prompt", echo=True, max_tokens=0, prompt="abcdef")


@row("`logprobs` of completions")
async def logprobs(served: Any) -> None:
    for count in (0, 20):
        answer = await completion(served, logprobs=count, prompt="éa")
        listed = answer["choices"][0]["logprobs"]
        assert listed["text_offset"] == [0, 0, 1]
        assert listed["top_logprobs"] is None if count == 0 else len(listed["top_logprobs"][2]) == 20
    await refused(served, COMPLETIONS, "logprobs", logprobs=21)


@row("`logprobs`, `top_logprobs` of chats")
async def top_logprobs(served: Any) -> None:
    answer = await chat(served, logprobs=True, top_logprobs=20)
    first = answer["choices"][0]["logprobs"]["content"][0]
    assert (first["bytes"], len(first["top_logprobs"])) == ([60], 20)
    await refused(served, CHATS, "top_logprobs", top_logprobs=1)


@row("tokens of a stop string")
async def stop_string_tokens(served: Any) -> None:
    answer = await completion(served, prompt="aEND", max_tokens=9, stop="END", logprobs=0)
    assert answer["choices"][0]["logprobs"]["tokens"] == ["a"]


@row("`max_tokens`, `max_completion_tokens`")
async def max_tokens(served: Any) -> None:
    answer = await completion(served, max_completion_tokens=4)
    assert answer["usage"]["completion_tokens"] == 4
    assert (await completion(served, max_tokens=None))["usage"]["completion_tokens"] == 16
    whole = await chat(served, max_tokens=None)
    assert whole["usage"]["total_tokens"] == served.engine.max_model_len
    for wrong in (0, -1):
        await refused(served, COMPLETIONS, "max_tokens", max_tokens=wrong)


@row("`temperature`, `top_p`")
async def temperature(served: Any) -> None:
    await completion(served, temperature=0, top_p=1e-9)
    assert (served.engine.params[-1].temperature, served.engine.params[-1].top_p) == (0, 1e-9)
    await refused(served, COMPLETIONS, "temperature", temperature=11)
    await refused(served, COMPLETIONS, "top_p", top_p=0)


@row("`presence_penalty`, `frequency_penalty`, `logit_bias`")
async def penalties(served: Any) -> None:
    await chat(served, presence_penalty=-2, frequency_penalty=0.5, logit_bias={"7": 100, "9": -1.5})
    params = served.engine.params[-1]
    assert (params.presence_penalty, params.frequency_penalty) == (-2, 0.5)
    assert params.logit_bias == ((7, 100), (9, -1.5))
    await refused(served, COMPLETIONS, "presence_penalty", presence_penalty=2.1)
    await refused(served, COMPLETIONS, "logit_bias", logit_bias={"x": 1})


def json_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}


def grammars(served: Any) -> list[tuple[str, str]]:
    """Return the grammars that the engine was asked for."""
    found = [params.grammar for params in served.engine.params]
    return [(one.kind, one.text) for one in found if one is not None]


@row("`response_format`")
async def response_format(served: Any) -> None:
    await chat(served, response_format={"type": "text"})
    assert grammars(served) == []
    await chat(served, response_format={"type": "json_object"})
    await completion(served, response_format=json_schema({"type": "null"}))
    assert grammars(served) == [("json_schema", '{"type":"object"}'), ("json_schema", '{"type":"null"}')]
    for kind in ({"type": "xml"}, {}, {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}}):
        status, answer = await served.post(CHATS, {"messages": MESSAGES, "response_format": kind})
        assert status == 400
        assert answer["error"]["param"].startswith("response_format")


@row("`seed`")
async def seed(served: Any) -> None:
    for value in (-1, 0, -(2**63), 2**63 - 2):
        await completion(served, seed=value, n=2)
        assert sorted(params.seed for params in served.engine.params[-2:]) == [value, value + 1]


@row("`stop`")
async def stop(served: Any) -> None:
    answer = await completion(served, prompt="abc", stop=["x", "bc"])
    assert (texts(answer), answer["choices"][0]["finish_reason"]) == (["a"], "stop")
    for wrong in ("", ["a"] * 17):
        await refused(served, COMPLETIONS, "stop", stop=wrong)


@row("`stream_options.include_usage`")
async def include_usage(served: Any) -> None:
    options = {"include_usage": True}
    *earlier, last = await streamed(served, CHATS, messages=MESSAGES, max_tokens=3, stream_options=options)
    assert [chunk["usage"] for chunk in earlier] == [None] * 3
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3)


@row("`user`")
async def user(served: Any) -> None:
    await chat(served, user="ann")
    assert served.engine.users == ["ann"]


@row("`model`")
async def model(served: Any) -> None:
    for name in ("fake", None):
        assert (await completion(served, model=name))["model"] == "fake"
    assert (await refused(served, CHATS, "model", 404, model="gpt-4"))["code"] == "model_not_found"


@row("`messages`")
async def messages(served: Any) -> None:
    roles = ("system", "developer", "user", "assistant", "tool")
    sent: list[Any] = [{"role": role, "content": "a"} for role in roles]
    sent.append({"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]})
    _, answer = await served.post("/tokenize", {"messages": sent})
    assert bytes(answer["tokens"]) == b"<system>a<developer>a<user>a<assistant>a<tool>a<user>bc<assistant>"
    await chat(served, messages=sent)
    await refused(served, CHATS, "messages", messages=[])


@row("`name` of a message")
async def participant(served: Any) -> None:
    _, answer = await served.post(
        "/tokenize", {"messages": [{"role": "user", "name": "Ann", "content": "a"}]}
    )
    assert bytes(answer["tokens"]) == b"<user Ann>a<assistant>"


ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
NOW = {"name": "now", "description": "the time"}
TOOLS: Any = [{"type": "function", "function": function} for function in (ADD, NOW)]
TWO_CALLS = '[{"name": "add", "arguments": {"a": 1}}, {"name": "now", "arguments": {}}]'


def choosing(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@contextmanager
def answering(served: Any, fake: Any, text: str) -> Iterator[None]:
    """Let chats be answered with a text."""

    async def prompt(*_: Any) -> list[int]:
        return [*text.encode(), fake.EOS]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served.service.encoder, "chat", prompt)
        yield


def calls_of(answer: dict[str, Any]) -> list[tuple[str, str]]:
    (choice,) = answer["choices"]
    assert (choice["message"]["role"], choice["message"]["content"]) == ("assistant", None)
    calls = choice["message"]["tool_calls"]
    assert all(call["type"] == "function" for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    return [(call["function"]["name"], call["function"]["arguments"]) for call in calls]


@row("`tools`")
async def tools(served: Any) -> None:
    await chat(served, tools=[])
    await refused(served, CHATS, "tools", tools=TOOLS * 65, tool_choice="none")
    await refused(served, CHATS, "tools[1].function.name", tools=TOOLS[:1] * 2, tool_choice="none")
    long = {"type": "function", "function": {**NOW, "description": "a" * 65_536}}
    await refused(served, CHATS, "tools", tools=[long], tool_choice="none")
    assert not grammars(served)
    with_tools = await chat(served, tools=TOOLS, tool_choice="required")
    without = await chat(served, tools=TOOLS, tool_choice="none")
    assert with_tools["usage"]["prompt_tokens"] == without["usage"]["prompt_tokens"] + len("[add now]")


@row('`tool_choice` "required"')
async def required(served: Any, fake: Any) -> None:
    with answering(served, fake, TWO_CALLS):
        answer = await chat(served, tools=TOOLS, tool_choice="required", max_tokens=200)
    assert calls_of(answer) == [("add", '{"a": 1}'), ("now", "{}")]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    ((kind, text),) = grammars(served)
    assert kind == "lark"
    assert "{0,15}" in text


@row("`tool_choice` with a function")
async def one_function(served: Any, fake: Any) -> None:
    with answering(served, fake, '{"a": 1}'):
        answer = await chat(served, tools=TOOLS, tool_choice=choosing("add"), max_tokens=200)
    assert calls_of(answer) == [("add", '{"a": 1}')]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert grammars(served) == [("json_schema", json.dumps(ADD["parameters"], separators=(",", ":")))]


@row('`tool_choice` "none"')
async def no_calls(served: Any) -> None:
    answer = await chat(served, tools=TOOLS, tool_choice="none", response_format={"type": "text"})
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "<us"}
    assert grammars(served) == []


@row("`parallel_tool_calls` false")
async def parallel_tool_calls(served: Any) -> None:
    for value in (None, True, False):
        await chat(served, tools=TOOLS, tool_choice="required", parallel_tool_calls=value)
    assert ["{0,15}" in text for _, text in grammars(served)] == [True, True, False]


@row("streamed calls")
async def streamed_calls(served: Any, fake: Any) -> None:
    body = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required", "max_tokens": 200}
    with answering(served, fake, TWO_CALLS):
        chunks = await streamed(served, CHATS, **body)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["tool_calls"]
    assert choices[0]["delta"] == {"role": "assistant", "content": None}
    parts = [part for choice in choices for part in choice["delta"].get("tool_calls", ())]
    for index, (name, arguments) in enumerate([("add", '{"a": 1}'), ("now", "{}")]):
        first, *others = [part for part in parts if part["index"] == index]
        assert (first["type"], first["function"]["name"]) == ("function", name)
        assert first["id"]
        assert all(set(part) == {"index", "function"} for part in others)
        assert "".join(part["function"]["arguments"] for part in (first, *others)) == arguments


@row("`tool_calls`, `tool_call_id` of messages")
async def calls_in_messages(served: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    result = {"role": "tool", "tool_call_id": "c1", "content": "2"}
    for content in ({}, {"content": None}, {"content": ""}):
        sent = [{"role": "assistant", "tool_calls": [call], **content}, result]
        _, answer = await served.post("/tokenize", {"messages": sent})
        assert bytes(answer["tokens"]) == b"<assistant>{c1 add a=1}<tool c1>2<assistant>"
        await chat(served, messages=sent)
    wrong = {**call, "function": {"name": "add", "arguments": "[1]"}}
    where = "messages[0].tool_calls[0].function.arguments"
    await refused(served, CHATS, where, messages=[{"role": "assistant", "tool_calls": [wrong]}])


@row("`/v1/models`, `/v1/models/NAME`")
async def models(served: Any) -> None:
    _, listed = await served.get("/v1/models")
    assert (await served.get("/v1/models/fake"))[1] == listed["data"][0]


@row("fields without an effect")
async def harmless(served: Any) -> None:
    await chat(served, metadata={"a": "b"}, store=False, service_tier="auto", parallel_tool_calls=True)


@row("`top_k`, `min_p`, `repetition_penalty`")
async def vllm_sampling(served: Any) -> None:
    await completion(served, top_k=5, min_p=0.1, repetition_penalty=1.5)
    params = served.engine.params[-1]
    assert (params.top_k, params.min_p, params.repetition_penalty) == (5, 0.1, 1.5)
    await completion(served, top_k=-1)
    assert served.engine.params[-1].top_k == 0


@row("`min_tokens`, `stop_token_ids`, `ignore_eos`")
async def vllm_ends(served: Any) -> None:
    assert texts(await completion(served, stop_token_ids=[98])) == ["a"]
    await completion(served, min_tokens=2, ignore_eos=True)
    assert (served.engine.params[-1].min_tokens, served.engine.params[-1].ignore_eos) == (2, True)
    assert texts(await completion(served, min_tokens=2, stop="b", max_tokens=9)) == ["aba"]


@row("`structured_outputs`")
async def structured_outputs(served: Any) -> None:
    schema: dict[str, Any] = {"type": "object"}
    for options in (
        {},
        {"json": schema},
        {"json": '{"type":"object"}'},
        {"json_object": True},
        {"regex": "a|b"},
        {"choice": ["a", 'b"\n']},
        {"grammar": "start: /a/"},
    ):
        await completion(served, structured_outputs=options)
    assert grammars(served) == [
        *[("json_schema", '{"type":"object"}')] * 3,
        ("regex", "a|b"),
        ("lark", 'start: "a" | "b\\"\\n"'),
        ("lark", "start: /a/"),
    ]


@row("`guided_json`, `guided_regex`, `guided_choice`, `guided_grammar`")
async def guided(served: Any) -> None:
    await chat(served, guided_json={"type": "object"})
    await chat(served, guided_regex="a|b")
    await chat(served, guided_choice=["a"])
    await chat(served, guided_grammar="start: /a/")
    assert [kind for kind, _ in grammars(served)] == ["json_schema", "regex", "lark", "lark"]


@row("`include_stop_str_in_output`")
async def include_stop(served: Any) -> None:
    assert texts(await completion(served, stop="b", include_stop_str_in_output=True)) == ["ab"]
    assert texts(await completion(served, stop_token_ids=[98], include_stop_str_in_output=True)) == ["ab"]


@row("`add_special_tokens`")
async def add_special_tokens(served: Any) -> None:
    asked: list[bool] = []
    codec = served.service.codec
    encode = codec.encode

    def encoded(text: str, *, special_tokens: bool = True) -> Any:
        asked.append(special_tokens)
        return encode(text, special_tokens=special_tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "encode", encoded)
        for value in (None, True, False):
            await completion(served, add_special_tokens=value)
            await served.post("/tokenize", {"prompt": "a", "add_special_tokens": value})
    assert asked == [True, True, True, True, False, False]
    await refused(served, CHATS, "add_special_tokens", add_special_tokens=True)


@row("`return_tokens_as_token_ids`")
async def tokens_as_ids(served: Any) -> None:
    answer = await chat(served, logprobs=True, return_tokens_as_token_ids=True)
    assert answer["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:60"
    answer = await completion(served, logprobs=1, return_tokens_as_token_ids=True)
    assert answer["choices"][0]["logprobs"]["tokens"][0] == "token_id:97"


@row("`/tokenize`, `/detokenize`")
async def tokenize(served: Any) -> None:
    _, answer = await served.post("/tokenize", {"prompt": "ab", "return_token_strs": True})
    assert answer == {
        "count": 2,
        "max_model_len": served.engine.max_model_len,
        "tokens": [97, 98],
        "token_strs": ["a", "b"],
    }
    assert await served.post("/detokenize", {"tokens": [97, 98]}) == (200, {"prompt": "ab"})
    counts = []
    for choice in ("required", choosing("add"), "none"):
        more = {"tools": TOOLS, "tool_choice": choice}
        counts.append((await served.post("/tokenize", {"messages": MESSAGES, **more}))[1]["count"])
        assert (await chat(served, **more))["usage"]["prompt_tokens"] == counts[-1]
    assert counts[0] == counts[1] > counts[2]


@row("`/generate`")
async def generate(served: Any) -> None:
    assert (await served.post("/generate", {"prompt": "ab", "max_tokens": 3}))[1]["text"] == "ababa"


@row('`tool_choice` "auto", which is the default with `tools`')
async def auto(served: Any) -> None:
    for choice in (None, "auto"):
        error = await refused(served, CHATS, "tool_choice", tools=TOOLS, tool_choice=choice)
        assert error["code"] == "unsupported_value"
        assert '"required", to one function, or to "none"' in error["message"]


@row("`tools` that cannot be followed")
async def tools_that_cannot_be_followed(served: Any) -> None:
    bad = {"name": "bad", "parameters": {"type": "object", "properties": {"a": {"not": {}}}}}
    several = [*TOOLS, {"type": "function", "function": bad}]
    error = await refused(served, CHATS, "tools", tools=several, tool_choice="required")
    assert "the parameters of bad" in error["message"]
    assert "not" in error["message"]
    error = await refused(served, CHATS, "tools", tools=several, tool_choice=choosing("bad"))
    assert '"not"' in error["message"]
    await chat(served, tools=several, tool_choice=choosing("add"))
    text = {"name": "f", "parameters": {"type": "string"}}
    several = [{"type": "function", "function": text}]
    await refused(served, CHATS, "tools[0].function.parameters.type", tools=several, tool_choice="required")


@row("`tool_choice` without `tools`, or with a function that is not in them")
async def choices_without_tools(served: Any) -> None:
    for choice in ("none", "auto", None):
        await chat(served, tool_choice=choice)
        await chat(served, tool_choice=choice, tools=[])
    for choice in ("required", choosing("add")):
        await refused(served, CHATS, "tool_choice", tool_choice=choice)
        await refused(served, CHATS, "tool_choice", tool_choice=choice, tools=[])
    error = await refused(served, CHATS, "tool_choice", tools=TOOLS, tool_choice=choosing("subtract"))
    assert "subtract" in error["message"]


@row("`functions`, `function_call`")
async def older_fields(served: Any) -> None:
    await chat(served, functions=[], function_call="auto")
    for name, value, instead in (
        ("functions", [{"name": "f"}], "tools"),
        ("function_call", {"name": "f"}, "tool_choice"),
    ):
        error = await refused(served, CHATS, name, **{name: value})
        assert error["message"].endswith(f"chats have {instead} instead")


async def refuses(served: Any, **fields: Any) -> None:
    """Check that each field is refused by both routes, and that the error says why."""
    for name, value in fields.items():
        for path in (COMPLETIONS, CHATS):
            error = await refused(served, path, name, **{name: value})
            assert error["code"] in ("unsupported_parameter", "unsupported_value")
            assert name in error["message"]


@row("other fields of `structured_outputs`")
async def other_structured_outputs(served: Any) -> None:
    for name in ("structural_tag", "whitespace_pattern"):
        await refused(served, CHATS, "structured_outputs", structured_outputs={"regex": "a", name: "b"})


@row("several of them, or one with calls; `min_tokens` or `ignore_eos` with one of them")
async def contradictions(served: Any) -> None:
    await refused(served, CHATS, "guided_regex", guided_regex="a", response_format={"type": "json_object"})
    await refused(served, CHATS, "ignore_eos", guided_regex="a", ignore_eos=True)
    await refused(served, CHATS, "min_tokens", guided_regex="a", min_tokens=2)
    for choice in ("required", choosing("add")):
        calls = {"tools": TOOLS, "tool_choice": choice}
        await refused(served, CHATS, "tools", response_format={"type": "json_object"}, **calls)
        await refused(served, CHATS, "tools", structured_outputs={"regex": "a"}, **calls)
        await refused(served, CHATS, "ignore_eos", ignore_eos=True, **calls)
    await chat(served, tools=TOOLS, tool_choice="none", guided_regex="a")


@row("schemas and grammars that cannot be followed")
async def bad_grammars(served: Any) -> None:
    schema = {"type": "array", "uniqueItems": True}
    error = await refused(served, CHATS, "response_format", response_format=json_schema(schema))
    assert "uniqueItems" in error["message"]
    await refused(served, COMPLETIONS, "guided_grammar", guided_grammar="root ::= 'a'")


@row("`suffix`")
async def suffix(served: Any) -> None:
    await completion(served, suffix="")
    await refused(served, COMPLETIONS, "suffix", suffix="b")


@row("`modalities`, `audio`, `reasoning_effort`, `prediction`, `web_search_options`")
async def modalities(served: Any) -> None:
    await refuses(served, modalities=["audio"], audio={"voice": "a"}, reasoning_effort="high")
    await refuses(served, prediction={"type": "content"}, web_search_options={})


@row("images, audio and files in messages")
async def images(served: Any) -> None:
    for kind in ("image_url", "input_audio", "file"):
        part = {"type": kind, kind: {"url": "a"}}
        sent = [{"role": "user", "content": [part]}]
        await refused(served, CHATS, "messages[0].content[0].type", messages=sent)


@row("`function_call`, `audio`, `refusal` in messages")
async def other_fields_of_messages(served: Any) -> None:
    for name in ("function_call", "audio", "refusal"):
        sent = [{"role": "assistant", "content": "a", name: "x"}]
        await refused(served, CHATS, f"messages[0].{name}", messages=sent)
        await chat(served, messages=[{"role": "assistant", "content": "a", name: None}])


@row("`tool_calls` and `tool_call_id` in messages of another role")
async def calls_of_another_role(served: Any) -> None:
    for name, value in (("tool_calls", [{"id": "1"}]), ("tool_call_id", "1")):
        await refused(
            served, CHATS, f"messages[0].{name}", messages=[{"role": "user", "content": "a", name: value}]
        )
        await chat(served, messages=[{"role": "user", "content": "a", name: None}])
    await refused(served, CHATS, "messages[0].content", messages=[{"role": "assistant", "content": None}])


@row("`stream_options.include_obfuscation`, `stream_options.continuous_usage_stats`")
async def other_stream_options(served: Any) -> None:
    for name in ("include_obfuscation", "continuous_usage_stats"):
        await refused(served, CHATS, f"stream_options.{name}", stream_options={name: True})
        await chat(served, stream_options={name: False})


@row("any other role")
async def roles(served: Any) -> None:
    error = await refused(served, CHATS, "messages[0].role", messages=[{"role": "martian", "content": "a"}])
    assert "martian" in error["message"]


@row("`use_beam_search`, `length_penalty`, `bad_words`, `allowed_token_ids`")
async def beams(served: Any) -> None:
    await refuses(served, use_beam_search=True, length_penalty=2, bad_words=["a"], allowed_token_ids=[1])


@row("`prompt_logprobs`, `return_token_ids`, `skip_special_tokens` false")
async def vllm_forms(served: Any) -> None:
    await refuses(served, prompt_logprobs=1, return_token_ids=True, skip_special_tokens=False)


@row("`truncate_prompt_tokens`, `chat_template`, `chat_template_kwargs`, `documents`")
async def vllm_prompts(served: Any) -> None:
    await refuses(served, truncate_prompt_tokens=5, chat_template="a", chat_template_kwargs={"a": 1})
    await refuses(served, documents=[{"a": 1}])


@row("`continue_final_message`, `add_generation_prompt` false")
async def continuing(served: Any) -> None:
    await refuses(served, continue_final_message=True, add_generation_prompt=False)


@row("`priority`")
async def priority(served: Any) -> None:
    await completion(served, priority=0)
    await refuses(served, priority=3)


@row("misspelt fields")
async def misspelt(served: Any) -> None:
    error = await refused(served, CHATS, "temprature", temprature=1)
    assert "did you mean temperature?" in error["message"]
    sent = [{"role": "user", "content": "a", "contents": "b"}]
    error = await refused(served, CHATS, "messages[0].contents", messages=sent)
    assert "did you mean content?" in error["message"]
    await refused(served, CHATS, "stream_options.include_use", stream_options={"include_use": True})


@row("fields of another route")
async def another_route(served: Any) -> None:
    await refused(served, COMPLETIONS, "messages", messages=MESSAGES)
    await refused(served, CHATS, "prompt", prompt="a")


@row("embeddings, responses, moderations")
async def no_routes(served: Any) -> None:
    for name in ("embeddings", "responses", "moderations"):
        status, answer = await served.post(f"/v1/{name}", {})
        assert (status, answer["error"]["type"]) == (404, "invalid_request_error")


@row("`invalid_type`, `invalid_value`")
async def invalid(served: Any) -> None:
    wrong: list[tuple[str, Any, str]] = [
        ("max_tokens", "5", "invalid_type"),
        ("max_tokens", 10**30, "invalid_value"),
        ("temperature", -1, "invalid_value"),
    ]
    for name, value, code in wrong:
        assert (await refused(served, COMPLETIONS, name, **{name: value}))["code"] == code


@row("`missing_required_parameter`")
async def missing(served: Any) -> None:
    _, answer = await served.post(COMPLETIONS, {})
    assert (answer["error"]["param"], answer["error"]["code"]) == ("prompt", "missing_required_parameter")
    error = await refused(served, CHATS, "messages[0].role", messages=[{"content": "a"}])
    assert error["code"] == "missing_required_parameter"


@row("`unknown_parameter`")
async def unknown(served: Any) -> None:
    assert (await refused(served, COMPLETIONS, "top_n", top_n=1))["code"] == "unknown_parameter"
    assert (await refused(served, CHATS, "prompt", prompt="a"))["code"] == "unknown_parameter"


@row("`unsupported_parameter`, `unsupported_value`")
async def unsupported(served: Any) -> None:
    error = await refused(served, COMPLETIONS, "prediction", prediction={})
    assert error["code"] == "unsupported_parameter"
    assert (await refused(served, COMPLETIONS, "suffix", suffix="a"))["code"] == "unsupported_value"


@row("`context_length_exceeded`")
async def context_length(served: Any) -> None:
    for path, field in ((COMPLETIONS, "prompt"), (CHATS, "messages")):
        error = await refused(served, path, field, max_tokens=5000)
        assert error["code"] == "context_length_exceeded"


@row("`model_not_found`")
async def model_not_found(served: Any) -> None:
    assert (await refused(served, COMPLETIONS, "model", 404, model="a"))["code"] == "model_not_found"


@row("`queue_full`, `queue_timeout`")
async def queue_full(served: Any) -> None:
    """test_busy checks the second one."""
    served.engine.refuse = QueueFull("the queue is full", 12.3)
    async with served.session.post(served.url + COMPLETIONS, json={"prompt": "a"}) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "13")
        assert (await response.json())["error"]["code"] == "queue_full"


async def code_with(served: Any, **headers: str) -> tuple[int, str]:
    """Return the status and the error code of a request with these headers."""
    async with served.session.post(
        served.url + COMPLETIONS, data=b'{"prompt": "a"}', headers=headers
    ) as response:
        return response.status, (await response.json())["error"]["code"]


@row("`invalid_api_key`, `host_not_allowed`, `origin_not_allowed`")
async def no_access(served: Any) -> None:
    """test_access checks the first one."""
    json_type = {"Content-Type": "application/json"}
    assert await code_with(served, **json_type, Host="evil.example") == (403, "host_not_allowed")
    assert await code_with(served, **json_type, Origin="http://evil.example") == (403, "origin_not_allowed")


@row("`unsupported_media_type`")
async def not_json(served: Any) -> None:
    assert await code_with(served, **{"Content-Type": "text/plain"}) == (415, "unsupported_media_type")


@pytest.mark.parametrize("title", CHECKS)
async def test_the_server_does_what_the_row_says(served: Any, fake: Any, title: str) -> None:
    check = CHECKS[title]
    await (check(served, fake) if len(inspect.signature(check).parameters) == 2 else check(served))
