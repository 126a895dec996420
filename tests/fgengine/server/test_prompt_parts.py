"""Log probabilities on their way from the engine's process to the server: bounded messages, in order."""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
import time
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from fgengine.config import EngineConfig
from fgengine.plan import TokenEvent
from fgengine.prompt_logprobs import PromptLogprobs
from fgengine.request import Request, SamplingParams
from fgengine.server import messages, worker
from fgengine.server.client import EngineClient

TOP = 20
LONGEST = 8192


def logprobs_of(prompt_len: int) -> PromptLogprobs:
    count = prompt_len - 1
    return PromptLogprobs(
        0,
        TOP,
        array("f", [-0.5 * i for i in range(count)]),
        array("i", [100_000 + i for i in range(count * TOP)]),
        array("f", [-0.25 * i for i in range(count * TOP)]),
    )


def prompt_of(prompt_len: int) -> list[messages.PromptToken]:
    """Return the tokens that a client should get."""
    entries = logprobs_of(prompt_len).entries()
    return [messages.PromptToken(None, []), *(messages.PromptToken(value, top) for value, top in entries)]


class Scoring:
    """An engine that gives each request two tokens, with all log probabilities that it asks for."""

    model_name, vocab_size, max_model_len = "scoring", 200_000, LONGEST + 10
    longest_step, retry_after, room = 0.0, None, None

    def __init__(self) -> None:
        self.requests: list[Request] = []

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def add(self, id: str, prompt: list[int], params: SamplingParams, **more: Any) -> Request:
        self.requests.append(Request.new(id, prompt, params, 0.0))
        return self.requests[-1]

    def prepare(self, params: SamplingParams) -> None:
        return None

    def expire(self) -> list[Any]:
        return []

    def abort(self, id: str) -> bool:
        (request,) = (one for one in self.requests if one.id == id)
        request.finish("abort", 0.0)
        self.requests.remove(request)
        return True

    def step(self) -> list[TokenEvent]:
        time.sleep(0.001)
        events = []
        for request in list(self.requests):
            request.tokens.append(5)
            first = request.num_generated == 1
            if not first:
                request.finish("length", 0.0)
                self.requests.remove(request)
            asked = first and request.params.prompt_logprobs is not None
            prompt = logprobs_of(request.prompt_len) if asked else None
            top = [(5, -0.5), (6, -1.5)] if request.params.top_logprobs else None
            events.append(TokenEvent(request, 5, -0.5 if request.params.logprobs else None, top, prompt))
        return events

    def stats(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


@pytest.fixture
async def client() -> Any:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    made: Callable[..., Any] = lambda config, report: Scoring()  # noqa: E731
    thread = threading.Thread(target=worker.run, args=(theirs, made), daemon=True)
    thread.start()
    client = EngineClient()
    await client.connect(ours, EngineConfig())
    await client.settled.wait()
    yield client
    await client.close()
    await asyncio.to_thread(thread.join, 5)


async def tokens_of(client: EngineClient, id: str, prompt_len: int, **fields: Any) -> list[messages.NewToken]:
    params = SamplingParams(max_tokens=2, **fields)
    stream = await client.add(id, [1] * prompt_len, params, arrival=0.0)
    tokens: list[messages.NewToken] = []
    while not tokens or tokens[-1].finish_reason is None:
        tokens += await stream.next()
    return tokens


async def test_top_log_probabilities_reach_the_client(client: EngineClient) -> None:
    for token in await tokens_of(client, "a", 3, logprobs=True, top_logprobs=2):
        assert (token.logprob, token.top, token.prompt) == (-0.5, [(5, -0.5), (6, -1.5)], None)
    for token in await tokens_of(client, "b", 3):
        assert (token.logprob, token.top, token.prompt) == (None, None, None)


@pytest.mark.parametrize("prompt_len", [1, 2, 511, 512, 513, 1025])
async def test_the_first_token_carries_the_complete_prompt(client: EngineClient, prompt_len: int) -> None:
    first, second = await tokens_of(client, "a", prompt_len, prompt_logprobs=TOP)
    assert first.prompt == prompt_of(prompt_len)
    assert second.prompt is None


@pytest.mark.slow
async def test_long_prompts_beside_each_other_arrive_whole(client: EngineClient) -> None:
    answers = await asyncio.gather(
        *(tokens_of(client, str(n), LONGEST, prompt_logprobs=TOP) for n in range(4)),
        tokens_of(client, "plain", 5),
    )
    want = prompt_of(LONGEST)
    for answer in answers[:4]:
        assert answer[0].prompt == want
    assert answers[4][0].prompt is None


async def test_an_aborted_request_leaves_no_part_behind(client: EngineClient) -> None:
    stream = await client.add("a", [1] * 600, SamplingParams(prompt_logprobs=TOP), arrival=0.0)
    client.abort("a")
    await stream.account()
    first, _ = await tokens_of(client, "a", 3, prompt_logprobs=TOP)
    assert first.prompt == prompt_of(3)


def test_every_message_is_small_however_long_the_prompt_is() -> None:
    engine, inbox = Scoring(), queue.SimpleQueue[Any]()
    sent: list[messages.Event] = []
    inbox.put(messages.Add("a", [1] * LONGEST, SamplingParams(max_tokens=2, prompt_logprobs=TOP), 0.0))
    loop = worker._Loop(engine, inbox, sent.append)

    def end_when_idle() -> None:
        inbox.put(None)

    threading.Timer(0.5, end_when_idle).start()
    loop.run()
    parts = [event for event in sent if isinstance(event, messages.PromptPart)]
    assert [len(part.tokens) for part in parts] == [512] * 16
    assert max(len(messages.frame(event)) for event in sent) < 200_000
    accepted, *rest = sent
    assert isinstance(accepted, messages.Accepted)
    assert rest[:16] == parts, "before the first token"
