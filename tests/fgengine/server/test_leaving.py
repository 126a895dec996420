"""Clients that leave at any time, with every policy and offloading mode: nothing hangs, nothing is lost.

FGBENCH_NIGHTLY=1 runs every mode with every policy; otherwise each policy has one of the modes.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import aiohttp
import msgspec
import pytest

from fgengine.engine import Engine
from fgengine.scheduling.policy import policy_names

MODES = ["none", "reactive", "proactive", "blocking", "recompute", "auto"]
PAIRS = list(product(policy_names(), MODES))
if os.environ.get("FGBENCH_NIGHTLY") != "1":
    PAIRS = [(policy, MODES[number % len(MODES)]) for number, policy in enumerate(policy_names())]
CLIENTS = 40
STEP_SECONDS = 0.0005


@pytest.mark.parametrize(("policy", "mode"), PAIRS)
async def test_clients_may_leave_at_any_time(
    policy: str, mode: str, symbolic_engine: Callable[..., Engine], serving_engine: Any
) -> None:
    engine = symbolic_engine(policy, offloading=mode, device_blocks=24, host_blocks=24)
    engine.model_name = "symbolic"
    step = engine.step

    def slow_step() -> Any:
        time.sleep(STEP_SECONDS)  # time to leave
        return step()

    engine.step = slow_step  # type: ignore[method-assign]
    choose = random.Random(f"{policy} {mode}")
    async with serving_engine(engine) as served:
        left = await asyncio.gather(*(client(served, random.Random(choose.random())) for _ in range(CLIENTS)))
        await served.until(lambda: not engine.has_work and served.service.counters.requests_in_flight == 0)
        _, stats = await served.get("/stats")
    assert stats["free_device_blocks"] == stats["num_device_blocks"]
    assert stats["free_host_blocks"] == stats["num_host_blocks"]
    assert stats["requests_finished"] + stats["requests_aborted"] == stats["requests_received"]
    assert stats["requests_finished"] >= left.count(False)
    assert 0 < left.count(False) < CLIENTS


async def answer_to(url: str, body: dict[str, Any]) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url + "/v1/completions", json=body) as response,
    ):
        return response.status, await response.read()


async def client(served: Any, choose: random.Random) -> bool:
    """Send a request; return whether the client left before the end."""
    count = choose.randint(1, 40)
    body = {
        "prompt": [choose.randrange(1009) for _ in range(choose.randint(1, 40))],
        "max_tokens": count,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    await asyncio.sleep(choose.random() * 0.05)
    leaves_after = choose.random() * 0.1 if choose.random() < 0.5 else None
    try:
        status, raw = await asyncio.wait_for(answer_to(served.url, body), leaves_after)
    except asyncio.TimeoutError:
        return True
    assert status == 200, raw
    *_, last, done, _ = raw.split(b"\n\n")
    assert done == b"data: [DONE]"
    usage = msgspec.json.decode(last.removeprefix(b"data: "))["usage"]
    assert usage["completion_tokens"] == count
    return False
