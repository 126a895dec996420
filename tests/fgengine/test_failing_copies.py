"""If a copy of KV blocks fails, all callers get the error and nothing hangs."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import pytest
import torch

from fgengine.config import EngineConfig
from fgengine.engine import Engine
from fgengine.execution.copying import ThreadCopyEngine
from fgengine.kv.manager import Where
from fgengine.kv.transfer import Transfer
from fgengine.plan import StepPlan, StepResult
from fgengine.request import SamplingParams
from fgengine.server import worker
from fgengine.server.client import EngineClient, EngineError, TokenStream

Build = Callable[..., Engine]
FAILURE = "a copy of KV blocks failed: a target block of .* is outside the pool of 0"

pytestmark = pytest.mark.timeout(20)


def params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


@pytest.fixture
def failing(symbolic_engine: Build, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine whose copies fail in their thread, because the host pool has no memory.

    Its steps are slow, so that the thread runs before a request ends.
    """
    engine = symbolic_engine(device_blocks=6, host_blocks=64)
    engine.copies = ThreadCopyEngine(torch.zeros(6, 4), torch.zeros(0, 4))
    launch = engine.runner.launch

    def slowly(plan: StepPlan) -> Callable[[], StepResult]:
        time.sleep(0.02)
        return launch(plan)

    monkeypatch.setattr(engine.runner, "launch", slowly)
    return engine


def test_the_step_after_the_failure_and_every_later_step_raise(failing: Engine) -> None:
    failing.add("old", [1] * 8, params(17))
    failing.add("new", [1] * 8, params(17))  # two blocks each, four each at the end; the pool has six
    with pytest.raises(RuntimeError, match=FAILURE):
        _serve(failing)
    assert failing.scheduler.kv.where("new") is Where.OFFLOADING
    assert failing.stats()["finished"] == 0
    with pytest.raises(RuntimeError, match=FAILURE):
        failing.step()
    failing.close()


def _serve(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def test_a_step_that_only_waits_for_the_copy_raises(symbolic_engine: Build) -> None:
    engine = symbolic_engine("mlfq", device_blocks=4, host_blocks=64, max_batch_size=1)
    engine.copies = ThreadCopyEngine(torch.zeros(4, 4), torch.zeros(0, 4))
    engine.add("long", [1] * 12, params(5))  # all four blocks
    engine.step()
    engine.step()
    engine.add("next", [1] * 16, params(1))
    with pytest.raises(RuntimeError, match=FAILURE):
        engine.step()
    engine.close()


@pytest.mark.parametrize("after", ["done", "wait", "nothing"])
def test_the_copy_engine_closes_after_a_failure_with_queued_copies(after: str) -> None:
    engine = ThreadCopyEngine(torch.zeros(4, 4), torch.zeros(1, 4))
    engine.submit(Transfer(0, "fine", "offload", [0], [0]))
    engine.submit(Transfer(1, "bad", "offload", [1], [1]))
    engine.submit(Transfer(2, "after it", "offload", [2], [0]))
    engine._worker.join()  # it ends at the failure
    if after != "nothing":
        with pytest.raises(RuntimeError, match="outside the pool of 1"):
            getattr(engine, after)()
    engine.close()
    assert not engine._worker.is_alive()


async def test_every_open_request_ends_with_an_error(failing: Engine) -> None:
    """The error passes through the worker's loop and the server's client."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    status = asyncio.create_task(asyncio.to_thread(worker.run, theirs, lambda config, report: failing))
    client = EngineClient()
    await client.connect(ours, EngineConfig())
    await client.settled.wait()
    arrival = time.monotonic()
    adding = [client.add(id, [1] * 8, params(17), arrival=arrival) for id in "abc"]
    answers = await asyncio.gather(*adding, return_exceptions=True)
    streams = [answer for answer in answers if isinstance(answer, TokenStream)]
    refused = [answer for answer in answers if isinstance(answer, EngineError)]  # added after the failure
    assert streams
    assert len(streams) + len(refused) == 3
    for stream in streams:
        with pytest.raises(EngineError, match=FAILURE):
            await _to_the_end(stream)
        with pytest.raises(EngineError, match=FAILURE):
            await stream.account()
    assert client.state == "broken"
    with pytest.raises(EngineError, match=FAILURE):
        await client.add("late", [1], params(1), arrival=arrival)
    assert await status == 1
    await client.close()
    theirs.close()


async def _to_the_end(stream: TokenStream) -> None:
    while any(token.finish_reason is None for token in await stream.next()):
        pass
