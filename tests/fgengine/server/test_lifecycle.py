"""Clients that disconnect, engines that break, and the server's counters."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from fgengine.request import Request
from fgengine.scheduling.fcfs import FCFS
from fgengine.scheduling.guard import Guarded
from fgengine.scheduling.policy import PolicyContext, Priority

LONG = {"prompt": "abc", "max_tokens": 4000}


class Backwards(FCFS):
    """A wrong policy: its priorities contradict its order."""

    def priority(self, request: Request) -> Priority:
        return tuple(-number for number in super().priority(request))


async def _stats(served: Any) -> dict[str, Any]:
    async with served.session.get(served.url + "/stats") as response:
        assert response.status == 200
        return dict(await response.json())


async def _health(served: Any) -> tuple[int, dict[str, str]]:
    async with served.session.get(served.url + "/health") as response:
        return response.status, await response.json()


@pytest.mark.parametrize("path", ["/v1/completions", "/generate"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.slow
async def test_a_request_is_aborted_when_its_client_disconnects(served: Any, path: str, stream: bool) -> None:
    served.engine.step_seconds = 0.02
    async with aiohttp.ClientSession() as session:

        async def ask() -> None:
            async with session.post(served.url + path, json={**LONG, "stream": stream}) as response:
                await response.read()

        task = asyncio.create_task(ask())
        await served.until(lambda: any(r.num_generated > 3 for r in served.engine.requests.values()))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await served.until(lambda: served.engine.aborted == ["cmpl-0"])
    await served.until(lambda: served.service.counters.requests_in_flight == 0)
    stats = await _stats(served)
    assert stats["free_device_blocks"] == stats["num_device_blocks"]
    assert stats["requests_aborted"] == 1
    assert stats["requests_finished"] == 0


@pytest.mark.slow
async def test_a_request_is_aborted_when_its_client_disconnects_before_it_is_accepted(served: Any) -> None:
    served.engine.step_seconds = 0.3
    first = asyncio.create_task(served.post("/v1/completions", {"prompt": "a", "max_tokens": 2}))
    await served.until(lambda: served.engine.has_work)
    second = asyncio.create_task(served.post("/v1/completions", LONG))  # waits for the step's end
    await served.until(lambda: served.service.counters.requests_in_flight == 2)
    await asyncio.sleep(0.02)
    second.cancel()
    assert (await first)[0] == 200
    await served.until(lambda: served.engine.aborted == ["cmpl-1"])
    assert served.engine.requests == {}


async def test_a_client_that_disconnects_does_not_disturb_others(served: Any) -> None:
    served.engine.step_seconds = 0.005
    stays = asyncio.create_task(served.post("/v1/completions", {"prompt": "xyz", "max_tokens": 30}))
    leaves = asyncio.create_task(served.post("/v1/completions", LONG))
    await served.until(lambda: len(served.engine.requests) == 2)
    leaves.cancel()
    assert (await stays)[1]["choices"][0]["text"] == "xyz" * 10


async def test_requests_are_counted_by_outcome(served: Any) -> None:
    await asyncio.gather(*(served.post("/v1/completions", {"prompt": "a"}) for _ in range(3)))
    await served.post("/v1/completions", {"prompt": "a", "n": 0})
    stats = await _stats(served)
    assert {key: value for key, value in stats.items() if key.startswith("requests_")} == {
        "requests_received": 4,
        "requests_finished": 3,
        "requests_refused": 1,
        "requests_rejected": 0,
        "requests_timed_out": 0,
        "requests_aborted": 0,
        "requests_failed": 0,
        "requests_in_flight": 0,
    }


async def test_stats_contain_the_engines_counters(served: Any) -> None:
    """They pass the channel between the processes with their nesting."""
    stats = await _stats(served)
    assert stats["levels"] == [{"name": "Q1", "requests": 0, "quantum": 0.5}]
    assert stats["policy"] == "fake"


async def test_all_clients_get_the_name_of_a_policy_that_breaks_its_contract(served: Any, fake: Any) -> None:
    def broken(engine: Any) -> None:
        policy = Guarded(Backwards(PolicyContext(name="my_policies:Backwards")))
        for request in engine.requests.values():
            policy.add(request, 0.0)
        list(policy.order(0.0))

    body = {"prompt": [*b"abc", fake.WAIT], "max_tokens": 99, "stream": False}
    answers = [asyncio.create_task(_text(served, body)) for _ in range(2)]
    await served.until(lambda: len(served.engine.requests) == 2)
    served.engine.step = lambda: broken(served.engine)
    message = "the policy 'my_policies:Backwards' cannot be used: its order gives request"
    for answer in answers:
        status, text = await answer
        assert status == 503
        assert message in json.loads(text)["error"]["message"]
    status, health = await _health(served)
    assert (status, health["status"]) == (503, "broken")
    assert health["message"].startswith(message)


async def test_all_clients_get_the_error_of_a_broken_engine_at_once(served: Any, fake: Any) -> None:
    def ask(stream: bool) -> asyncio.Task[Any]:
        prompt = [*b"abc", fake.WAIT]
        body = {"prompt": prompt, "max_tokens": 99, "stream": stream}
        return asyncio.create_task(_text(served, body))

    whole, streamed = ask(False), ask(True)
    await served.until(lambda: sum(r.num_generated for r in served.engine.requests.values()) == 2)
    culprit = await _text(served, {"prompt": [fake.BREAK], "max_tokens": 1})
    for status, text in (await whole, culprit):
        assert status == 503
        assert "the fake broke" in json.loads(text)["error"]["message"]
    status, text = await streamed
    assert status == 200
    last = text.strip().split("\n\n")[-1]
    assert "the fake broke" in json.loads(last.removeprefix("data: "))["error"]["message"]
    assert await _health(served) == (503, {"status": "broken", "message": "RuntimeError: the fake broke"})
    status, answer = await served.post("/v1/completions", {"prompt": "a"})
    assert (status, answer["error"]["type"]) == (503, "service_unavailable")
    assert served.service.counters.requests_failed == 4
    assert served.service.counters.requests_in_flight == 0


async def _text(served: Any, body: dict[str, Any]) -> tuple[int, str]:
    async with served.session.post(served.url + "/v1/completions", json=body) as response:
        return response.status, await response.text()


async def test_health_of_a_ready_server(served: Any) -> None:
    assert await _health(served) == (200, {"status": "ready", "message": "ready"})


async def test_a_request_that_a_draining_server_turns_away_is_not_a_failure(served: Any) -> None:
    served.service.draining = True
    async with served.session.post(served.url + "/v1/completions", json=LONG) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
    counters = served.service.counters
    assert (counters.requests_rejected, counters.requests_failed) == (1, 0)
