"""Greedy output does not depend on other requests, preemption, offloading, chunked prefill or the policy.

The tests run real models (tiny random weights, float32) in the same engine that serves.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import get_args

import pytest
import torch

from fgengine.clock import WallClock
from fgengine.config import Admission, Offloading
from fgengine.cost import CostModel
from fgengine.engine import Engine
from fgengine.execution.runner import TorchRunner
from fgengine.kv.manager import KVManager
from fgengine.model.loader import load
from fgengine.model.shape import ModelShape
from fgengine.ops.select import ops_for
from fgengine.plan import StepPlan, StepResult
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import Policy, PolicyContext, Priority, make_policy, policy_names
from fgengine.scheduling.predictor import Noisy
from fgengine.scheduling.scheduler import Scheduler
from fgengine.scheduling.step_builder import Limits

SHAPES = {
    "llama": ModelShape("llama", 256, 48, 96, 2, 6, 2, 8, 256, tied_embeddings=False),
    "opt": ModelShape("opt", 256, 48, 96, 2, 4, 4, 12, 256, tied_embeddings=False, activation="relu"),
}
COST = CostModel(step=0.001, prefill_token=0.0002, decode_request=0.0001)


class Shuffled(Policy):
    """A policy with a new random order at every step, for the maximum of preemptions."""

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self.random = random.Random(7)
        self.requests: dict[str, Request] = {}
        self.places: dict[str, int] = {}

    def add(self, request: Request, now: float) -> None:
        self.requests[request.id] = request

    def remove(self, request: Request) -> None:
        del self.requests[request.id]

    def order(self, now: float) -> Iterator[Request]:
        shuffled = self.random.sample(list(self.requests.values()), len(self.requests))
        self.places = {request.id: place for place, request in enumerate(shuffled)}
        return iter(shuffled)

    def priority(self, request: Request) -> Priority:
        return (self.places.get(request.id, len(self.places)),)


class Poisoning(TorchRunner):
    """A runner that overwrites every free device block with NaN before each step, to reveal wrong reads."""

    kv: KVManager
    num_pieces = 0
    """Number of items that did not compute the last known token."""

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        self.num_pieces += sum(not item.yields_token for item in plan.items)
        held = torch.zeros(self.num_device_blocks, dtype=torch.bool)
        for item in plan.items:
            for block in item.blocks[: self.kv.blocks_for(max(item.start, 1))]:
                held[block] = True
        free = torch.tensor(self.kv.device._free, dtype=torch.int64)
        self.pool[free[~held[free]]] = float("nan")
        return super().launch(plan)


def build(
    family: str,
    policy: str | type[Policy],
    *,
    device_blocks: int = 60,
    host_blocks: int = 60,
    max_batch_size: int = 4,
    max_tokens_per_batch: int = 256,
    offloading: Offloading = "reactive",
    admission: Admission = "guarded",
    chunked_prefill: bool = False,
    overlap: bool = False,
    graphs: bool = False,
) -> Engine:
    shape = SHAPES[family]
    model = load(shape, None, torch.device("cpu"), torch.float32, 11)
    with torch.no_grad():
        model.embedding.mul_(40)  # spread the logits: with small random weights they are nearly equal
    model.ops = ops_for(torch.device("cpu"), torch.float32)
    runner = Poisoning(
        model,
        block_size=8,
        num_device_blocks=device_blocks,
        num_host_blocks=host_blocks,
        max_model_len=shape.max_position,
    )
    if graphs:
        runner.capture_graphs(max_batch_size, capture=lambda launches: launches)
    runner.kv = KVManager(device_blocks, host_blocks, 8)
    context = PolicyContext(COST, starvation_limit=0.05, max_batch_size=max_batch_size, predictor=Noisy(1.0))
    scheduler = Scheduler(
        make_policy(policy, context) if isinstance(policy, str) else policy(context),
        runner.kv,
        Limits(
            max_tokens_per_batch,
            shape.max_position,
            chunked_prefill,
            block_bytes=runner.block_bytes,
        ),
        offloading=offloading,
        admission=admission,
        cost=COST,
    )
    return Engine(scheduler, runner, runner.copies, WallClock(), vocab_size=shape.vocab_size, overlap=overlap)


def prompts() -> list[list[int]]:
    source = random.Random(3)
    return [[source.randrange(256) for _ in range(n)] for n in (1, 8, 9, 16, 23, 37)]


def params() -> SamplingParams:
    return SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)


@cache
def alone(family: str) -> list[list[int]]:
    """Return the tokens of each prompt served alone in an engine with large pools."""
    engine = build(family, "fcfs")
    return [engine.generate([prompt], params())[0].tokens for prompt in prompts()]


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.slow
def test_the_reference_outputs_differ(family: str) -> None:
    outputs = [tuple(tokens[-16:]) for tokens in alone(family)]
    assert len(set(outputs)) > 4
    assert len({token for output in outputs for token in output}) > 20


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("policy", ["fcfs", "mlfq", "sj-mlfq", "srpt", Shuffled])
@pytest.mark.parametrize(
    ("memory", "settings"),
    [
        ("ample", {}),
        ("offload", {"device_blocks": 12}),
        ("proactive", {"device_blocks": 16, "offloading": "proactive"}),
        ("recompute", {"device_blocks": 12, "host_blocks": 0, "offloading": "recompute"}),
        ("both", {"device_blocks": 10, "host_blocks": 9}),
        ("eager", {"device_blocks": 10, "host_blocks": 9, "admission": "eager"}),
        ("chunks", {"device_blocks": 12, "host_blocks": 6, "max_tokens_per_batch": 10}),
    ],
)
@pytest.mark.parametrize(
    ("overlap", "graphs"), [(False, False), (True, False), (True, True)], ids=["", "overlap", "graphs"]
)
@pytest.mark.slow
def test_greedy_tokens_equal_those_of_each_request_alone(
    family: str,
    policy: str | type[Policy],
    memory: str,
    settings: dict[str, int],
    overlap: bool,
    graphs: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = build(family, policy, overlap=overlap, graphs=graphs, **settings)  # type: ignore[arg-type]
    if policy is Shuffled:  # disable pressure, which would use the order of arrival
        monkeypatch.setattr(engine.scheduler.residency.pressure, "_is_short", lambda unfinished: False)
    done = engine.generate(prompts(), params())
    assert [request.tokens for request in done] == alone(family)
    while engine.has_work:
        engine.step()
    engine.scheduler.kv.check()
    stats = engine.stats()
    assert stats["free_device_blocks"] == stats["num_device_blocks"]
    if policy is Shuffled:
        # Without host blocks, requests start only if blocks are free, so fewer are preempted.
        assert stats["preemptions"] > (4 if memory == "recompute" else 8)
        assert memory == "ample" or stats["offloaded_blocks"] + stats["recomputed_tokens"] > 8
    engine.close()


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("policy", policy_names())
@pytest.mark.parametrize("offloading", get_args(Offloading))
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.slow
def test_every_policy_with_every_offloading_keeps_the_tokens_under_pressure(
    family: str, policy: str, offloading: Offloading, chunked: bool
) -> None:
    """The six requests need 14 blocks in their first steps and 24 in their last; the pool has 10."""
    engine = build(
        family,
        policy,
        device_blocks=10,
        max_batch_size=6,
        max_tokens_per_batch=12 if chunked else 256,
        offloading=offloading,
        chunked_prefill=chunked,
    )
    requests = [engine.add(str(i), prompt, params()) for i, prompt in enumerate(prompts())]
    short_of_memory = False
    while engine.has_work:
        engine.step()
        short_of_memory = short_of_memory or engine.scheduler.kv.device.num_free < 3
    assert [list(request.tokens) for request in requests] == alone(family)
    stats, runner = engine.stats(), engine.runner
    assert isinstance(runner, Poisoning)
    assert (runner.num_pieces > 0) == chunked
    moved, recomputed = stats["offloaded_blocks"], stats["recomputed_tokens"]
    assert short_of_memory
    assert (moved + recomputed > 0) == (offloading != "none")
    assert moved == 0 or offloading != "recompute"
    engine.close()


@pytest.mark.slow
def test_seeded_sampling_is_the_same_under_preemption() -> None:
    sampled = SamplingParams(max_tokens=12, temperature=0.9, top_p=0.95, top_k=50, seed=5, ignore_eos=True)
    expected = build("llama", "fcfs").generate(prompts(), sampled)
    small = {"device_blocks": 10, "host_blocks": 5, "max_batch_size": 3}
    for overlap in (False, True):
        done = build("llama", Shuffled, overlap=overlap, graphs=overlap, **small).generate(prompts(), sampled)
        assert [r.tokens for r in expected] == [r.tokens for r in done]
