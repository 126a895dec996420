"""The complete engine, one step ahead of a slow fake GPU: every step reads the KV of earlier steps."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from fgengine.config import Offloading
from fgengine.engine import Engine
from fgengine.execution.copying import CudaCopyEngine
from fgengine.kv.transfer import Direction
from fgengine.plan import PlanItem, StepPlan, StepResult
from fgengine.request import SamplingParams

Build = Callable[..., Engine]
MakeCuda = Callable[[int], Any]
BLOCK, DEVICE_BLOCKS, HOST_BLOCKS = 4, 16, 24
EOS = 7


class LaggingRunner:
    """Queues its steps on the compute stream. Each slot of the pool gets a unique number."""

    def __init__(self, cuda: Any, seed: int) -> None:
        self.cuda, self.random = cuda, random.Random(seed)
        self.pool = torch.full((DEVICE_BLOCKS, BLOCK), -1)
        self.wrong: list[str] = []

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        for item in plan.items:
            table = tuple(item.blocks)  # a copy: the original grows while the step waits
            for position in range(item.start + item.num_tokens):
                self.cuda.compute.queue(partial(self._touch, item, table, position))
        end = self.cuda.Event()
        end.record(self.cuda.compute)
        ending = [item.request.id for item in plan.items if item.yields_token]
        tokens = {id: EOS if self.random.random() < 0.08 else 1 for id in ending}

        def collect() -> StepResult:
            end.synchronize()
            return StepResult(plan.step, 0.01, tokens)

        return collect

    def _touch(self, item: PlanItem, table: tuple[int, ...], position: int) -> None:
        slot = (table[position // BLOCK], position % BLOCK)
        right = 1000 * int(item.request.id) + position
        if position >= item.start:
            self.pool[slot] = right
        elif int(self.pool[slot]) != right:
            self.wrong.append(f"token {position} of {item.request.id}: {int(self.pool[slot])}")


def serve(
    engine: Engine, cuda: Any, seed: int, sabotage: Callable[[CudaCopyEngine], None] = lambda copies: None
) -> list[str]:
    """Serve 25 requests, some of them aborted. Returns messages about wrong KV."""
    runner = LaggingRunner(cuda, seed)
    copies = CudaCopyEngine(runner.pool, torch.full((HOST_BLOCKS, BLOCK), -2), cuda)
    sabotage(copies)
    engine.runner, engine.copies = runner, copies
    source = random.Random(seed)
    ids = list(range(25))
    while ids or engine.has_work:
        if ids and source.random() < 0.3:
            params = SamplingParams(max_tokens=source.randint(1, 30))
            engine.add(str(ids.pop()), [1] * source.randint(1, 30), params)
        if source.random() < 0.04 and engine.scheduler.requests:
            engine.abort(source.choice(sorted(engine.scheduler.requests)))
        if engine.has_work:
            engine.step()
            engine.clock.advance(0.01)  # type: ignore[attr-defined]
        if runner.wrong:
            break
    return runner.wrong


def build(engine: Build, policy: str, offloading: Offloading) -> Engine:
    return engine(
        policy,
        device_blocks=DEVICE_BLOCKS,
        host_blocks=HOST_BLOCKS,
        block_size=BLOCK,
        eos=frozenset([EOS]),
        offloading=offloading,
        starvation_limit=0.3,
        overlap=True,
    )


@pytest.mark.parametrize("policy", ["fcfs", "mlfq", "sj-mlfq"])
@pytest.mark.parametrize("offloading", ["reactive", "proactive"])
@pytest.mark.slow
def test_no_step_reads_a_block_that_is_being_copied(
    symbolic_engine: Build, fake_cuda: MakeCuda, policy: str, offloading: Offloading
) -> None:
    moved = 0
    for seed in range(6):
        engine = build(symbolic_engine, policy, offloading)
        assert serve(engine, fake_cuda(seed), seed) == []
        engine.scheduler.kv.check()
        stats = engine.stats()
        assert (stats["free_device_blocks"], stats["free_host_blocks"]) == (DEVICE_BLOCKS, HOST_BLOCKS)
        assert stats["finished"] + stats["aborted"] == 25
        moved += stats["uploaded_blocks"]
    assert moved > 30


@pytest.mark.parametrize("direction", ["offload", "upload"])
def test_a_copy_that_waits_for_no_step_is_noticed(
    symbolic_engine: Build, fake_cuda: MakeCuda, direction: Direction
) -> None:
    def deaf(copies: CudaCopyEngine) -> None:
        copies._streams[direction].wait_stream = lambda other: None

    for seed in range(30):
        engine = build(symbolic_engine, "sj-mlfq", "proactive")
        if serve(engine, fake_cuda(seed), seed, deaf):
            return
    pytest.fail("no step read wrong KV")
