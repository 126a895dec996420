"""A request's accounting, compared with the server's clock, with a real engine in its own process.

A prompt takes about 10 ms, and most requests arrive while another one's prompt is computed.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

PHASES = ("queued", "swapped", "prefill", "decode")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Served:
    """A server that measures the JCT of each request."""

    def __init__(self, url: str, session: aiohttp.ClientSession, seconds: dict[str, float]) -> None:
        self.url, self.session = url, session
        self.seconds = seconds
        """JCT at the server in seconds, by the request's X-Mark header."""

    async def account(
        self, path: str, number: int, stream: bool, output: int
    ) -> tuple[float, dict[str, float]]:
        """Send a request; return its JCT at the server and the accounting in its answer."""
        mark = f"{path} {number} {stream}"
        body = {"prompt": [5 + number] * 1000, "max_tokens": output, "ignore_eos": True, "stream": stream}
        if "chat" in path:
            del body["prompt"]
            body["messages"] = [{"role": "user", "content": "x" * 900}]
        async with self.session.post(self.url + path, json=body, headers={"X-Mark": mark}) as response:
            raw = await response.read()
            assert response.status == 200, raw
        messages = [m.removeprefix(b"data: ") for m in raw.replace(b"\0", b"\n\n").split(b"\n\n")]
        last = [m for m in messages if m and m != b"[DONE]"][-1]
        return self.seconds[mark], json.loads(last)["fgengine"]


@pytest.fixture
async def served(serving: Any, new_cache: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setenv("FGBENCH_CACHE", str(new_cache))  # no other test uses the profile made here
    seconds: dict[str, float] = {}

    @web.middleware
    async def timed(request: web.Request, handler: Handler) -> web.StreamResponse:
        await request.content.wait_eof()
        begun = time.monotonic()
        try:
            return await handler(request)
        finally:
            seconds[request.headers["X-Mark"]] = time.monotonic() - begun

    async with serving(timed, policy="srpt", max_batch_size=4, swap_space=2**22 / 2**30) as (url, session):
        yield Served(url, session, seconds)


async def one_round(served: Served) -> list[tuple[float, dict[str, float]]]:
    """Send twelve requests, one every 11 ms, each shorter than those before: srpt offloads the earlier ones.

    The pool holds three requests. On any machine, the first three generate for longer than the others take to
    arrive, so the pool is full when they arrive.
    """
    paths = ["/v1/completions", "/v1/chat/completions", "/generate"]
    jobs = []
    for number in range(12):
        output = 400 - number if number < 3 else 80 - 5 * number
        answer = served.account(paths[number % 3], number, number % 2 == 0, output)
        jobs.append(asyncio.create_task(answer))
        await asyncio.sleep(0.011)
    return await asyncio.gather(*jobs)


@pytest.mark.slow
async def test_the_phases_sum_to_the_time_at_the_server(served: Served) -> None:
    """The sum is never above the JCT, and below it by less than 1 %, or by less than 2 ms for a short
    request.

    Another program may use the processor while the last piece travels from the engine's process. So the lower
    limit must hold in only one round of five.
    """
    rounds = []
    for _ in range(5):
        answers = await one_round(served)
        assert sum(account["queued"] for _, account in answers) > 0.1
        assert sum(account["swapped"] for _, account in answers) > 0
        assert sum(account["preemptions"] for _, account in answers) > 0
        rounds.append([(jct, sum(account[phase] for phase in PHASES)) for jct, account in answers])
        assert all(total <= jct for jct, total in rounds[-1])
        if all(total >= min(0.99 * jct, jct - 0.002) for jct, total in rounds[-1]):
            return
    pytest.fail(f"(JCT, sum of its phases) of each request and round: {rounds}")
