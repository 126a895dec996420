"""Several answers to one request: several prompts, n and best_of."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from fgengine.request import SamplingParams
from fgengine.scheduling.refusal import QueueFull, QueueTimeout
from fgengine.server.choices import asks
from fgengine.server.schemas import Wish

SSE = b"\n\n"
ACCOUNT = {"queued", "swapped", "prefill", "decode", "preemptions", "bytes_moved"}


def chunks(messages: list[bytes]) -> list[dict[str, Any]]:
    assert messages[-1] == b"data: [DONE]"
    return [json.loads(message[6:]) for message in messages[:-1]]


def texts_of(streamed: list[dict[str, Any]]) -> dict[int, str]:
    """Return the text of each choice of a stream."""
    texts: dict[int, str] = {}
    for chunk in streamed:
        for choice in chunk["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


@pytest.mark.parametrize("prompts", [["ab", "xyz"], [[97, 98], [120, 121, 122]]])
async def test_each_prompt_has_its_choices_in_order(served: Any, prompts: Any) -> None:
    body = {"prompt": prompts, "max_tokens": 4, "n": 2}
    status, answer = await served.post("/v1/completions", body)
    assert status == 200
    texts = ["abab", "abab", "xyzx", "xyzx"]
    assert [(one["index"], one["text"]) for one in answer["choices"]] == list(enumerate(texts))
    assert {one["finish_reason"] for one in answer["choices"]} == {"length"}
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 16, "total_tokens": 21}
    assert all(set(one["fgengine"]) == ACCOUNT for one in answer["choices"])
    assert "fgengine" not in answer
    streamed = chunks(await served.stream("/v1/completions", body, SSE))
    assert texts_of(streamed) == dict(enumerate(texts))


async def test_a_stream_of_several_choices_interleaves_them(served: Any) -> None:
    body = {"prompt": ["abc", "x"], "max_tokens": 5, "stream_options": {"include_usage": True}}
    *streamed, last = chunks(await served.stream("/v1/completions", body, SSE))
    order = [chunk["choices"][0]["index"] for chunk in streamed]
    assert sorted(order) == [0] * 5 + [1] * 5
    assert order[:5] != [0] * 5
    assert len({chunk["id"] for chunk in streamed}) == 1
    ends = [chunk["choices"][0] for chunk in streamed if chunk["choices"][0]["finish_reason"]]
    assert [set(end["fgengine"]) for end in ends] == [ACCOUNT] * 2
    assert all(chunk["usage"] is None for chunk in streamed)
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 4, "completion_tokens": 10, "total_tokens": 14}


async def test_several_answers_to_a_chat(served: Any) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "n": 3, "max_tokens": 5}
    _, answer = await served.post("/v1/chat/completions", body)
    contents = [one["message"]["content"] for one in answer["choices"]]
    assert contents == ["<user"] * 3
    prompt = len("<user>hi<assistant>")
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 15, "total_tokens": prompt + 15}
    streamed = chunks(await served.stream("/v1/chat/completions", body, SSE))
    firsts = [chunk["choices"][0] for chunk in streamed if "role" in chunk["choices"][0]["delta"]]
    assert sorted(choice["index"] for choice in firsts) == [0, 1, 2]


def test_each_answer_to_a_prompt_has_a_seed_of_its_own() -> None:
    def seeds(prompts: int, seed: int | None) -> list[int | None]:
        params = SamplingParams(seed=seed)
        return [ask.params.seed for ask in asks([[1]] * prompts, params, Wish(n=1, best_of=3), (), False)]

    assert seeds(2, 7) == [7, 8, 9, 7, 8, 9]  # a prompt has the same answers alone
    assert seeds(1, 2**63 - 2) == [2**63 - 2, 2**63 - 1, -(2**63)]
    assert seeds(1, None) == [None] * 3


async def test_best_of_gives_the_most_probable_answers_and_counts_all(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum of the log probabilities alone would prefer short answers."""
    step = type(served.engine).step

    def with_probabilities(engine: Any) -> Any:
        return [
            event._replace(logprob=-1.0 if event.request.params.seed == 2 else -2.0) for event in step(engine)
        ]

    monkeypatch.setattr(type(served.engine), "step", with_probabilities)
    body = {"prompt": "ab", "max_tokens": 3, "n": 1, "best_of": 3, "seed": 1, "logprobs": 0}
    _, answer = await served.post("/v1/completions", body)
    (choice,) = answer["choices"]
    assert choice["index"] == 0
    assert choice["logprobs"]["token_logprobs"] == [-1.0] * 3
    assert answer["usage"]["completion_tokens"] == 9
    _, unlisted = await served.post("/v1/completions", {**body, "logprobs": None, "n": 2})
    assert [one["logprobs"] for one in unlisted["choices"]] == [None, None]
    assert served.engine.params[-1].logprobs
    status, refused = await served.post("/v1/completions", {**body, "stream": True})
    assert (status, refused["error"]["param"]) == (400, "best_of")


@pytest.mark.parametrize("stream", [True, False])
async def test_all_are_aborted_when_the_client_leaves(served: Any, fake: Any, stream: bool) -> None:
    body = {"prompt": [[97, fake.WAIT], [98, fake.WAIT]], "n": 2, "max_tokens": 50, "stream": stream}
    asking = asyncio.create_task(served.post("/v1/completions", body))
    await served.until(lambda: sum(r.num_generated for r in served.engine.requests.values()) == 4)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await served.until(lambda: not served.engine.requests)
    assert len(served.engine.aborted) == 4
    assert served.service.counters.requests_in_flight == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_if_one_is_refused_the_others_are_aborted(
    served: Any, fake: Any, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    add, accepted = type(served.engine).add, []

    def add_two(engine: Any, *args: Any, **options: Any) -> Any:
        if len(accepted) == 2:
            raise QueueFull("the queue is full", 3.0)
        accepted.append(add(engine, *args, **options))
        return accepted[-1]

    monkeypatch.setattr(type(served.engine), "add", add_two)
    body = {"prompt": [[fake.WAIT]] * 4, "max_tokens": 50, "stream": stream}
    status, answer = await served.post("/v1/completions", body)
    assert (status, answer["error"]["code"]) == (429, "queue_full")
    await served.until(lambda: not served.engine.requests)
    assert len(served.engine.aborted) == 2


async def test_a_request_dropped_after_another_has_begun_ends_the_stream_with_the_error(
    served: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.service.engine, "drops_waiting", True)
    body = {"prompt": [[97, fake.WAIT], [98, fake.WAIT]], "max_tokens": 50, "stream": True}
    async with served.session.post(served.url + "/v1/completions", json=body) as response:
        await response.content.readuntil(SSE)
        second = list(served.engine.requests.values())[1]
        served.engine.expired = [(second, QueueTimeout("the request waited for 5 s", 0.2))]
        await served.post("/v1/completions", {"prompt": "a", "max_tokens": 1})  # a step, in which it expires
        rest = await response.content.read()
    messages = [json.loads(message[6:]) for message in rest.split(SSE) if message]
    assert "waited for 5 s" in messages[-1]["error"]["message"]
    assert messages[-1]["error"]["code"] == "queue_timeout"
    await served.until(lambda: not served.engine.requests)


async def test_a_stop_string_ends_each_answer_by_itself(served: Any) -> None:
    body = {"prompt": ["a.", "bcd."], "max_tokens": 4000, "stop": "."}
    _, answer = await served.post("/v1/completions", body)
    assert [one["text"] for one in answer["choices"]] == ["a", "bcd"]
    assert [one["finish_reason"] for one in answer["choices"]] == ["stop", "stop"]
    assert served.engine.requests == {}


async def test_too_many_answers_are_refused_before_a_prompt_is_encoded(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.service.encoder, "prompts", None)
    status, answer = await served.post("/v1/completions", {"prompt": ["a"] * 129, "max_tokens": 1})
    assert (status, answer["error"]["param"]) == (400, "prompt")
    assert "asks for 129 answers (129 prompts x 1): ask for at most 128" in answer["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_more_answers_than_an_idle_engine_takes_are_refused_for_good(served: Any, path: str) -> None:
    """A 429 would say that the same request can be served later."""
    served.service.engine.model = msgspec.structs.replace(served.service.engine.model, room=5)
    body = {"n": 6, "max_tokens": 1, "prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    del body["prompt" if "chat" in path else "messages"]
    status, answer = await served.post(path, body)
    assert (status, answer["error"]["param"]) == (400, "n")
    assert "at most 5 (max_batch_size + max_queue)" in answer["error"]["message"]


async def test_only_so_many_tokens_of_prompts_are_scored(served: Any) -> None:
    body = {"prompt": [[97] * 3000] * 4, "max_tokens": 1, "echo": True, "logprobs": 20}
    status, answer = await served.post("/v1/completions", body)
    assert (status, answer["error"]["param"]) == (400, "logprobs")
    assert "asks for 252000 log probabilities" in answer["error"]["message"]


def late_first(served: Any) -> None:
    """Let the first answer to each prompt of the fake engine begin three steps later than the others."""
    step, waits = served.engine.step, {}

    def late() -> list[Any]:
        every = served.engine.requests
        late = {id: one for id, one in every.items() if one.params.prompt_logprobs is not None}
        late = {id: one for id, one in late.items() if waits.setdefault(id, 0) < 3}
        for id in late:
            waits[id] += 1
            del every[id]
        events = step()
        served.engine.requests = {**late, **every}
        return list(events)

    served.engine.step = late


async def test_a_prompt_with_several_answers_is_scored_once(served: Any) -> None:
    body = {"prompt": ["abc", "xy"], "max_tokens": 5, "echo": True, "logprobs": 1, "n": 3, "seed": 7}
    late_first(served)
    _, answer = await served.post("/v1/completions", body)
    assert [params.prompt_logprobs for params in served.engine.params] == [1, None, None] * 2
    assert [params.seed for params in served.engine.params] == [7, 8, 9] * 2
    expected = [list("abcabcab")] * 3 + [list("xyxyxyx")] * 3
    for choice, tokens in zip(answer["choices"], expected, strict=True):
        assert choice["text"] == "".join(tokens)
        assert choice["logprobs"]["tokens"] == tokens
        assert choice["logprobs"]["token_logprobs"] == [None] + [-0.5] * (len(tokens) - 1)
        assert choice["logprobs"]["text_offset"] == list(range(len(tokens)))
    streamed = chunks(await served.stream("/v1/completions", body, SSE))
    found: dict[int, list[str]] = {}
    for chunk in streamed:
        for choice in chunk["choices"]:
            found.setdefault(choice["index"], []).extend(choice["logprobs"]["tokens"])
    assert found == dict(enumerate(expected))
    assert texts_of(streamed) == dict(enumerate(map("".join, expected)))
    assert len(served.engine.params) == 12


async def test_the_best_answers_have_the_prompts_scores_whichever_they_are(served: Any) -> None:
    step = served.engine.step

    def worse_first() -> list[Any]:
        return [
            event._replace(
                logprob=-9.0 if event.request.params.prompt_logprobs is not None else event.logprob
            )
            for event in step()
        ]

    served.engine.step = worse_first
    body = {"prompt": "ab", "max_tokens": 2, "echo": True, "logprobs": 0, "n": 1, "best_of": 3}
    _, answer = await served.post("/v1/completions", body)
    (choice,) = answer["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.5, -0.5]


async def test_the_limit_of_scored_tokens_counts_what_an_answer_lists(served: Any) -> None:
    body = {"prompt": [97] * 3000, "max_tokens": 1, "echo": True, "logprobs": 20}
    for more, status in (({"n": 4}, 400), ({"n": 1, "best_of": 4}, 200)):
        assert (await served.post("/v1/completions", {**body, **more}))[0] == status
