"""The OpenAI routes, over a fake engine that repeats the prompt."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fgengine.scheduling.refusal import RequestRefused

SSE = b"\n\n"


def _ids(text: str) -> list[int]:
    return list(text.encode())


def _chunks(messages: list[bytes]) -> list[dict[str, Any]]:
    assert all(message.startswith(b"data: ") for message in messages)
    assert messages[-1] == b"data: [DONE]"
    return [json.loads(message[6:]) for message in messages[:-1]]


async def test_a_completion_of_text(served: Any) -> None:
    status, answer = await served.post("/v1/completions", {"prompt": "abc", "max_tokens": 5})
    assert status == 200
    assert answer["object"] == "text_completion"
    assert answer["model"] == "fake"
    assert answer["choices"] == [{"index": 0, "text": "abcab", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert set(answer["fgengine"]) == {"queued", "swapped", "prefill", "decode", "preemptions", "bytes_moved"}


@pytest.mark.parametrize("prompt", [_ids("abc"), [_ids("abc")], ["abc"]])
async def test_a_prompt_may_be_token_ids_or_a_list_of_one(served: Any, prompt: Any) -> None:
    status, answer = await served.post("/v1/completions", {"prompt": prompt, "max_tokens": 3})
    assert (status, answer["choices"][0]["text"]) == (200, "abc")


async def test_the_default_length_is_16_tokens(served: Any) -> None:
    _, answer = await served.post("/v1/completions", {"prompt": "a"})
    assert answer["choices"][0]["text"] == "a" * 16


async def test_a_stream_has_a_chunk_per_token_and_ends_with_the_accounting(served: Any) -> None:
    chunks = _chunks(await served.stream("/v1/completions", {"prompt": "abc", "max_tokens": 4}, SSE))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", "c", "a"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "length"]
    assert ["fgengine" in chunk for chunk in chunks] == [False, False, False, True]
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_a_stream_with_usage(served: Any) -> None:
    body = {"prompt": "abc", "max_tokens": 2, "stream_options": {"include_usage": True}}
    chunks = _chunks(await served.stream("/v1/completions", body, SSE))
    assert [len(chunk["choices"]) for chunk in chunks] == [1, 1, 0]
    assert chunks[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert chunks[-1]["fgengine"]["preemptions"] == 0
    assert "fgengine" not in chunks[-2]


async def test_characters_are_not_split_and_all_tokens_are_counted(served: Any) -> None:
    text = "né 🦙!"
    body = {"prompt": text, "max_tokens": len(text.encode()), "stream_options": {"include_usage": True}}
    chunks = _chunks(await served.stream("/v1/completions", body, SSE))
    pieces = [chunk["choices"][0]["text"] for chunk in chunks[:-1]]
    assert pieces == ["n", "", "é", " ", "", "", "", "🦙", "!"]
    assert chunks[-1]["usage"]["completion_tokens"] == len(text.encode())


async def test_an_unfinished_character_appears_at_the_end_of_the_answer(served: Any) -> None:
    _, answer = await served.post("/v1/completions", {"prompt": "aé", "max_tokens": 2})
    assert answer["choices"][0]["text"] == "a\ufffd"


async def test_a_stop_string_across_tokens_ends_the_text_and_the_request(served: Any) -> None:
    body = {"prompt": "one END two ", "max_tokens": 4000, "stop": ["END", "never"]}
    chunks = _chunks(await served.stream("/v1/completions", body, SSE))
    texts = [chunk["choices"][0]["text"] for chunk in chunks]
    assert texts == ["o", "", "", "ne ", "", "", ""]  # "n" could be the start of "never"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert "fgengine" in chunks[-1]
    assert served.engine.requests == {}


async def test_the_beginning_of_a_stop_string_is_not_lost(served: Any) -> None:
    _, answer = await served.post("/v1/completions", {"prompt": "abc", "max_tokens": 3, "stop": "cx"})
    assert answer["choices"][0]["text"] == "abc"


async def test_eos_ends_the_answer_and_is_not_in_the_text(served: Any, fake: Any) -> None:
    prompt = [*_ids("ab"), fake.EOS]
    _, answer = await served.post("/v1/completions", {"prompt": prompt, "max_tokens": 50})
    assert answer["choices"][0]["text"] == "ab"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 3


async def test_a_stop_token_id_ends_the_answer(served: Any) -> None:
    body = {"prompt": "abc", "max_tokens": 50, "stop_token_ids": [ord("c")]}
    _, answer = await served.post("/v1/completions", body)
    assert answer["choices"][0]["text"] == "ab"


async def test_logprobs_of_the_chosen_tokens(served: Any) -> None:
    _, answer = await served.post("/v1/completions", {"prompt": "ab", "max_tokens": 2, "logprobs": 1})
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a": -0.5}, {"b": -0.5}],
        "text_offset": [0, 1],
    }


async def test_a_chat_completion(served: Any) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 19, "logprobs": True}
    _, answer = await served.post("/v1/chat/completions", body)
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "<user>hi<assistant>"}
    assert choice["logprobs"]["content"][0] == {
        "token": "<",
        "logprob": -0.5,
        "bytes": [60],
        "top_logprobs": [],
    }
    assert answer["object"] == "chat.completion"


async def test_a_streamed_chat_completion(served: Any) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    body = {"messages": [{"role": "user", "content": parts}], "max_completion_tokens": 2}
    chunks = _chunks(await served.stream("/v1/chat/completions", body, SSE))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": "<"}, {"content": "u"}]


async def test_a_chat_without_a_limit_fills_the_context(served: Any, fake: Any) -> None:
    body = {"messages": [{"role": "user", "content": "x" * (fake.MAX_MODEL_LEN - 60)}]}
    _, answer = await served.post("/v1/chat/completions", body)
    assert answer["usage"]["total_tokens"] == fake.MAX_MODEL_LEN


async def test_the_model_is_listed_with_its_sizes(served: Any, fake: Any) -> None:
    async with served.session.get(served.url + "/v1/models") as response:
        [model] = (await response.json())["data"]
    assert model["id"] == "fake"
    assert (model["max_model_len"], model["vocab_size"]) == (fake.MAX_MODEL_LEN, fake.VOCAB_SIZE)


CHAT = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("path", "body", "field", "message"),
    [
        ("completions", {}, "prompt", "prompt is missing"),
        ("completions", {"prompt": ["a", [1]]}, "prompt", "mixes"),
        ("completions", {"prompt": ["a", 1]}, "prompt", "mixes"),
        ("completions", {"prompt": []}, "prompt", "is empty"),
        ("completions", {"prompt": ["a", ""]}, "prompt", "at least one token"),
        ("completions", {"prompt": ["a"] * 129}, "prompt", "at most 128"),
        ("completions", {"prompt": ["a", "b"], "n": 65}, "n", "at most 128"),
        ("completions", {"prompt": "a", "n": 0}, "n", "at least 1"),
        ("completions", {"prompt": "a", "n": True}, "n", "is true, but it must be a whole number"),
        ("completions", {"prompt": "a", "n": 3, "best_of": 2}, "best_of", "at least n"),
        ("completions", {"prompt": "a", "suffix": "b"}, "suffix", "not supported"),
        ("completions", {"prompt": "a", "presence_penalty": 2.5}, "presence_penalty", "between -2 and 2"),
        ("completions", {"prompt": "a", "frequency_penalty": -3}, "frequency_penalty", "between -2 and 2"),
        ("completions", {"prompt": "a", "repetition_penalty": 0}, "repetition_penalty", "above 0"),
        ("completions", {"prompt": "a", "min_p": 1.5}, "min_p", "between 0 and 1"),
        ("completions", {"prompt": "a", "min_tokens": 17}, "min_tokens", "max_tokens"),
        ("completions", {"prompt": "a", "logit_bias": {"a": 1}}, "logit_bias", "give token ids"),
        ("completions", {"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias", "between -100 and 100"),
        ("completions", {"prompt": "a", "seed": 2**63}, "seed", "<="),
        ("completions", {"prompt": "a", "max_tokens": "5"}, "max_tokens", "must be a whole number"),
        ("completions", {"prompt": "a", "user": "x" * 257}, "user", "<= 256"),
        ("completions", {"prompt": "a", "user": 7}, "user", "is 7, but it must be a text or null"),
        ("completions", {"prompt": "a", "max_tokens": 0}, "max_tokens", "at least 1"),
        ("completions", {"prompt": "a", "temperature": -1}, "temperature", "between"),
        ("completions", {"prompt": "a", "top_p": 0}, "top_p", "above 0"),
        ("completions", {"prompt": "a", "top_k": -2}, "top_k", "0 (off)"),
        ("completions", {"prompt": "a", "stop": ["x"] * 17}, "stop", "at most 16"),
        ("completions", {"prompt": "a", "stop": ""}, "stop", "1 to 256"),
        ("completions", {"prompt": "a", "stop": "x" * 257}, "stop", "1 to 256"),
        ("completions", {"prompt": "a", "stop_token_ids": [1] * 257}, "stop_token_ids", "at most"),
        ("completions", {"prompt": "a", "logprobs": 21}, "logprobs", "between 0 and 20"),
        ("completions", {"prompt": "", "max_tokens": 5}, "prompt", "at least one token"),
        ("completions", {"prompt": "a", "max_tokens": 5000}, "prompt", "more than 4096"),
        ("chat/completions", {"messages": CHAT, "max_tokens": 5000}, "messages", "more than 4096"),
        ("completions", {"prompt": "a", "max_tokens": 10**30}, "max_tokens", "<="),
        ("completions", {"prompt": [1, 10**30]}, "prompt[1]", "<="),
        ("completions", {"prompt": "a", "stop_token_ids": [-(10**30)]}, "stop_token_ids[0]", ">="),
        ("chat/completions", {"messages": []}, "messages", "1 to"),
        ("chat/completions", {"messages": [{"role": "function", "content": "x"}]}, None, "no robots"),
        (
            "chat/completions",
            {"messages": [{"role": "martian", "content": "x"}]},
            "messages[0].role",
            'is "martian", but it must be system or developer',
        ),
        (
            "chat/completions",
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].id",
            "is missing",
        ),
        ("chat/completions", {"messages": CHAT, "top_logprobs": 2}, "top_logprobs", "set logprobs"),
        (
            "chat/completions",
            {"messages": CHAT, "logprobs": True, "top_logprobs": 21},
            "top_logprobs",
            "between 0 and 20",
        ),
        ("chat/completions", {"messages": CHAT, "tools": [{}]}, "tools[0].type", "is missing"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": 3}]},
            "messages[0].content",
            "is 3, but it must be a text, a list",
        ),
    ],
)
async def test_invalid_requests_get_the_reason(
    served: Any, path: str, body: Any, field: str, message: str
) -> None:
    for stream in (False, True):
        status, answer = await served.post(f"/v1/{path}", {**body, "stream": stream})
        assert status == 400
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"]["param"] == field
        assert message in answer["error"]["message"]
    assert served.service.counters.requests_refused == 2
    assert served.service.counters.requests_finished == 0


async def test_the_user_reaches_the_engine(served: Any) -> None:
    body = {"max_tokens": 1, "prompt": "a"}
    await served.post("/v1/completions", {**body, "user": "ann"})
    await served.post("/v1/chat/completions", {"max_tokens": 1, "messages": CHAT, "user": "ben"})
    await served.post("/generate", {**body, "user": "eve"})
    await served.post("/v1/completions", {**body, "user": None})
    assert served.engine.users == ["ann", "ben", "eve", ""]


async def test_neutral_and_unknown_fields_are_accepted(served: Any) -> None:
    body = {"prompt": "a", "max_tokens": 1, "n": 1, "best_of": 1, "logit_bias": {}, "user": "me", "top_k": -1}
    status, _ = await served.post("/v1/completions", {**body, "suffix": None, "presence_penalty": 0.0})
    assert status == 200


@pytest.mark.parametrize(
    "raw",
    [b"{", b"[]", b"\xff", b"null", b'{"a":' + b"[" * 100_000],
    ids=["cut", "list", "not UTF-8", "null", "deep"],
)
async def test_bodies_that_are_no_json_object_answer_400(served: Any, raw: bytes) -> None:
    async with served.session.post(served.url + "/v1/completions", data=raw) as response:
        assert response.status == 400
        assert "error" in await response.json()


async def test_a_body_that_is_too_large_answers_413(served: Any) -> None:
    limit = served.service.encoder.max_body_bytes
    async with served.session.post(served.url + "/v1/completions", data=b" " * (limit + 1)) as response:
        assert response.status == 413
        assert str(limit) in (await response.json())["error"]["message"]


async def test_a_body_of_unknown_length_is_read_up_to_the_limit(served: Any) -> None:
    limit = served.service.encoder.max_body_bytes

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(limit // 1000 + 2):
            yield b" " * 1000

    async with served.session.post(served.url + "/v1/completions", data=pieces()) as response:
        assert response.status == 413


async def test_an_unknown_route_answers_404(served: Any) -> None:
    status, answer = await served.post("/v1/embeddings", {})
    assert status == 404
    assert "/v1/embeddings" in answer["error"]["message"]


async def test_the_model_is_an_object_that_clients_expect(served: Any) -> None:
    _, listed = await served.get("/v1/models")
    (model,) = listed["data"]
    assert (model["id"], model["root"], model["parent"]) == ("fake", "fake", None)
    assert abs(model["created"] - time.time()) < 600
    assert await served.get("/v1/models/fake") == (200, model)
    status, answer = await served.get("/v1/models/gpt-4")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_ids_say_the_kind_of_answer_and_are_not_used_again(served: Any) -> None:
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    answers = [(await served.post("/v1/completions", {"prompt": "a", "max_tokens": 1}))[1] for _ in range(2)]
    answers.append((await served.post("/v1/chat/completions", chat))[1])
    ids = [answer["id"] for answer in answers]
    assert len(set(ids)) == 3
    assert [id.partition("-")[0] for id in ids] == ["cmpl", "cmpl", "chatcmpl"]
    assert len(ids[0].split("-")[1]) == 8  # differs after a restart


async def test_earlier_messages_of_a_stream_have_no_usage_yet(served: Any) -> None:
    body = {"prompt": "abc", "max_tokens": 2, "stream_options": {"include_usage": True}}
    chunks = _chunks(await served.stream("/v1/completions", body, SSE))
    assert [chunk["usage"] is None for chunk in chunks] == [True, True, False]
    plain = _chunks(await served.stream("/v1/completions", {"prompt": "abc", "max_tokens": 2}, SSE))
    assert not any("usage" in chunk for chunk in plain)


@pytest.mark.parametrize(
    ("path", "refused", "field"),
    [
        ("v1/completions", "logit_bias", "logit_bias"),
        ("v1/completions", "prompt", "prompt"),
        ("v1/chat/completions", "prompt", "messages"),
        ("v1/completions", "max_tokens", "max_completion_tokens"),
        ("v1/completions", "top_logprobs", "logprobs"),
        ("v1/chat/completions", "top_logprobs", "top_logprobs"),
        ("v1/completions", "guided_regex", "guided_regex"),
        ("generate", "min_tokens", "min_tokens"),
        ("v1/completions", None, None),
    ],
)
async def test_the_field_that_the_engine_refuses_is_named(
    served: Any, path: str, refused: str | None, field: str | None
) -> None:
    """Whatever the sentence begins with."""
    served.engine.refuse = RequestRefused("user is the first word", refused)
    body = {"messages": CHAT} if path == "v1/chat/completions" else {"prompt": "a"}
    status, answer = await served.post(f"/{path}", {**body, "max_completion_tokens": 1})
    error = answer["error"]
    assert (status, error["param"], error["message"]) == (400, field, "user is the first word")
