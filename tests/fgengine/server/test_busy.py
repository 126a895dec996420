"""A busy server answers 429 if the queue is full, and 503 after the queue's timeout."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from fgengine.scheduling.refusal import QueueFull, QueueTimeout

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "abc"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 4},
    "/generate": {"prompt": "abc"},
}
routes = pytest.mark.parametrize("path", list(BODIES))
streamed = pytest.mark.parametrize("stream", [True, False])


async def ask(served: Any, path: str, **more: Any) -> tuple[int, Any, Any]:
    async with served.session.post(served.url + path, json={**BODIES[path], **more}) as response:
        return response.status, response.headers, json.loads(await response.text())


@routes
@streamed
async def test_a_full_queue_answers_429_with_the_time_to_try_again(
    served: Any, path: str, stream: bool
) -> None:
    served.engine.refuse = QueueFull("the queue is full: 9 requests wait (max_queue)", 12.3)
    status, headers, answer = await ask(served, path, stream=stream)
    assert status == 429
    assert headers["Retry-After"] == "13"
    assert answer["error"] == {
        "message": "the queue is full: 9 requests wait (max_queue); try again in 13 s",
        "type": "rate_limit_error",
        "param": None,
        "code": "queue_full",
    }
    served.engine.refuse = None
    assert (await ask(served, path))[0] == 200
    counters = served.service.counters
    assert (counters.requests_rejected, counters.requests_refused, counters.requests_failed) == (1, 0, 0)


@routes
@pytest.mark.slow
async def test_while_the_queue_is_full_requests_are_refused_before_they_are_read(
    served: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server uses the queue's state after the last step, until a later step changes it."""
    served.engine.step_seconds = 0.01
    served.engine.retry_after = 3.0
    running = asyncio.create_task(ask(served, "/v1/completions", max_tokens=10_000 // 3, prompt=[1, 2, 3]))
    await served.until(lambda: any(r.num_generated > 1 for r in served.engine.requests.values()))
    accepted = len(served.engine.users)
    monkeypatch.setattr(served.service.codec, "encode", None)  # tokenizing would fail
    monkeypatch.setattr(served.service.codec, "encode_chat", None)
    for _ in range(20):
        status, headers, _ = await ask(served, path)
        assert (status, headers["Retry-After"]) == (429, "3")
    assert len(served.engine.users) == accepted
    monkeypatch.undo()
    served.engine.retry_after = None
    await asyncio.sleep(0.1)
    assert (await ask(served, path))[0] == 200
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_queue_is_not_full_after_all_clients_have_left(served: Any, fake: Any) -> None:
    """No step reports this, because the engine has no work then."""
    served.engine.retry_after = 3.0
    waits = asyncio.create_task(ask(served, "/v1/completions", prompt=[fake.WAIT], max_tokens=9))
    await served.until(lambda: any(r.num_generated for r in served.engine.requests.values()))
    await asyncio.sleep(0.05)
    assert (await ask(served, "/generate"))[0] == 429
    waits.cancel()
    await asyncio.gather(waits, return_exceptions=True)
    await served.until(lambda: not served.engine.requests)
    await asyncio.sleep(0.05)
    assert (await ask(served, "/generate", max_tokens=1))[0] == 200


@routes
@streamed
async def test_a_request_that_waited_too_long_is_answered_503_and_not_streamed(
    served: Any, fake: Any, monkeypatch: pytest.MonkeyPatch, path: str, stream: bool
) -> None:
    monkeypatch.setattr(served.service.engine, "drops_waiting", True)
    monkeypatch.setattr(type(served.engine), "step", lambda self: asyncio.run(asyncio.sleep(0.001)) or [])
    waits = asyncio.create_task(ask(served, path, stream=stream))
    await served.until(lambda: len(served.engine.requests) == 1)
    (request,) = served.engine.requests.values()
    served.engine.expired = [(request, QueueTimeout("the request waited for 5 s", 0.2))]
    status, headers, answer = await waits
    assert status == 503
    assert headers["Retry-After"] == "1"
    assert answer["error"]["code"] == "queue_timeout"
    assert answer["error"]["message"] == "the request waited for 5 s; try again in 1 s"
    counters = served.service.counters
    assert (counters.requests_timed_out, counters.requests_failed, counters.requests_in_flight) == (1, 0, 0)


@pytest.fixture
async def busy(serving: Any) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    """Start a real engine in its own process that computes one request at a time."""
    async with serving(
        policy="fcfs",
        max_batch_size=1,
        swap_space=0,
        max_queue=3,
        max_queue_tokens=100_000,
        queue_timeout=0.8,
    ) as served:
        yield served


@pytest.mark.slow
async def test_a_real_engine_refuses_and_drops_requests_and_then_serves_again(
    busy: tuple[str, aiohttp.ClientSession],
) -> None:
    url, session = busy

    async def complete(max_tokens: int, stream: bool = True) -> tuple[int, str]:
        body = {"prompt": [5] * 8, "max_tokens": max_tokens, "ignore_eos": True, "stream": stream}
        async with session.post(url + "/v1/completions", json=body) as response:
            return response.status, await response.text()

    async def stats() -> dict[str, Any]:
        async with session.get(url + "/stats") as response:
            return dict(await response.json())

    long = asyncio.create_task(complete(1900, stream=False))
    while (await stats())["running"] == 0:
        await asyncio.sleep(0.01)
    others = [asyncio.create_task(complete(1900)) for _ in range(12)]
    statuses = sorted([status for status, _ in await asyncio.gather(*others)])
    found = await stats()
    served = statuses.count(200)
    assert statuses.count(429) == 9
    assert statuses.count(503) == 3 - served
    assert statuses.count(503) > 0
    assert found["requests_rejected"] == 9
    assert found["requests_timed_out"] == 3 - served
    assert (found["max_queue"], found["max_queue_tokens"], found["queue_timeout"]) == (3, 100_000, 0.8)
    long.cancel()
    await asyncio.gather(long, return_exceptions=True)
    assert (await complete(3))[0] == 200
    found = await stats()
    assert found["free_device_blocks"] == found["num_device_blocks"]
    assert (found["queued_requests"], found["unstarted_requests"]) == (0, 0)
