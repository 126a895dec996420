"""A simulation that takes several steps at once makes the same decisions as an engine that takes each step.

This is tested for every policy and every offloading mode. Each case is generated from a seed: the cost model,
both pools, the bandwidth of copies, the batch size, the limits, the users and the load. ``FGBENCH_NIGHTLY=1``
runs many more seeds.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import pytest

from fgengine.clock import VirtualClock
from fgengine.config import Admission, Offloading
from fgengine.cost import CostModel
from fgengine.engine import Engine
from fgengine.kv.manager import KVManager
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import PolicyContext, make_policy, policy_names
from fgengine.scheduling.predictor import Noisy
from fgengine.scheduling.scheduler import Scheduler
from fgengine.scheduling.step_builder import Limits
from fgengine.simulation.cluster import Cluster
from fgengine.simulation.copying import SimulatedCopyEngine
from fgengine.simulation.replica import Replica
from fgengine.simulation.routing import make_router
from fgengine.simulation.runner import SimulatedRunner

BLOCK_BYTES = 100_000
BLOCK_SIZE = 8
LONGEST = 400
"""Maximum prompt and output tokens of a request."""
SEEDS = range(1000) if os.environ.get("FGBENCH_NIGHTLY") == "1" else range(8)
FOUND: dict[tuple[str, str], Sequence[int]] = {("vtc", "none"): (5, 6, 18)}
"""Seeds, by policy and offloading, whose cases showed differences in the past."""

Ended = tuple[str, list[float], float]
"""A request's id, the time of each of its tokens, the time of its end."""


@dataclass(frozen=True)
class Case:
    """One simulated machine and its load."""

    policy: str
    offloading: Offloading
    cost: CostModel
    device_blocks: int
    host_blocks: int
    limits: Limits
    max_batch_size: int
    starvation_limit: float
    admission: Admission
    work: Sequence[tuple[float, int, int, str]]
    """(arrival, prompt tokens, output tokens, user)."""

    @classmethod
    def drawn(cls, policy: str, offloading: Offloading, seed: int) -> Case:
        source = random.Random(f"{policy} {offloading} {seed}")
        cost = CostModel(
            step=source.choice([0.001, 0.01, 0.02]),
            prefill_request=source.choice([0.0, 0.001]),
            prefill_token=source.choice([1e-5, 5e-4]),
            prefill_pair=source.choice([0.0, 3e-7]),
            decode_request=source.choice([1e-5, 7e-4]),
            decode_context=source.choice([0.0, 1e-6, 2e-5]),
            copy_bytes_per_second=source.choice([1e7, 1e8, 1e10]),
        )
        batch = source.choice([1, 2, 4, 8])
        limits = Limits(
            max_tokens_per_batch=source.choice([32, 128, 2048]),
            max_model_len=LONGEST,
            chunked_prefill=source.random() < 0.3,
            block_bytes=BLOCK_BYTES,
        )
        users = source.choice([1, 2, 4])
        lengths = [
            (source.choice([3, 20, 150]), source.choice([1, 15, 60, 200]))
            for _ in range(source.choice([12, 30]))
        ]
        busy = sum(cost.share_seconds(prompt, output, batch) for prompt, output in lengths) / len(lengths)
        rate = source.choice([0.5, 1.0, 2.0]) / busy
        when, work = 0.0, []
        for prompt, output in lengths:
            when += source.expovariate(rate)
            work.append((when, prompt, output, f"user {int(users * source.random() ** 2)}"))
        longest = -(-LONGEST // BLOCK_SIZE)
        return cls(
            policy=policy,
            offloading=offloading,
            cost=cost,
            device_blocks=source.choice([longest, 2 * longest, 20 * longest]),
            host_blocks=source.choice([0, longest, 20 * longest]),
            limits=limits,
            max_batch_size=batch,
            starvation_limit=source.choice([0.1, 1.0, 30.0]),
            admission=source.choice(["guarded", "guarded", "eager"]),
            work=work,
        )

    def on_gpu(self) -> Case:
        """Return the same case on a machine whose cost model has a maximum, with its knee at 100 tokens."""
        cost = replace(self.cost, matmul_step=self.cost.step, matmul_token=self.cost.step / 100)
        return replace(self, cost=cost)

    def scheduler(self) -> Scheduler:
        context = PolicyContext(self.cost, self.starvation_limit, self.max_batch_size, Noisy(1.0))
        return Scheduler(
            make_policy(self.policy, context),
            KVManager(self.device_blocks, self.host_blocks, BLOCK_SIZE),
            self.limits,
            offloading=self.offloading,
            admission=self.admission,
            cost=self.cost,
        )

    def requests(self) -> list[Request]:
        return [
            Request(
                id=str(index),
                prompt_len=prompt,
                params=SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True),
                arrival=arrival,
                tokens=bytearray(prompt),
                user=user,
                phase_since=arrival,
            )
            for index, (arrival, prompt, output, user) in enumerate(self.work)
        ]


def step_by_step(case: Case, scheduler: Scheduler, requests: Sequence[Request]) -> list[Ended]:
    clock = VirtualClock()
    copies = SimulatedCopyEngine(clock, BLOCK_BYTES, case.cost.copy_bytes_per_second)
    engine = Engine(scheduler, SimulatedRunner(case.cost, clock), copies, clock)
    times: dict[str, list[float]] = {request.id: [] for request in requests}
    waiting = list(reversed(requests))
    while waiting or engine.has_work:
        if not engine.has_work:
            clock.advance_to(max(clock.now(), waiting[-1].arrival))
        while waiting and waiting[-1].arrival <= clock.now():
            scheduler.add(waiting.pop(), clock.now())
        for event in engine.step():
            times[event.request.id].append(clock.now())
    return [(request.id, times[request.id], request.phase_since) for request in requests]


def advancing(replica: Replica, requests: Sequence[Request]) -> list[Ended]:
    endings = Cluster([replica], make_router("round-robin")).serve(iter(requests))
    ended = [(e.request.id, list(e.token_times), e.request.phase_since) for e in endings]
    return sorted(ended, key=lambda end: int(end[0]))


def differences(case: Case) -> list[str]:
    """Describe the differences between a simulation with several steps at once and one with single steps."""
    single = case.scheduler()
    expected_requests, got_requests = case.requests(), case.requests()
    expected = step_by_step(case, single, expected_requests)
    replica = Replica(case.scheduler(), case.cost, keep_token_times=True)
    got = advancing(replica, got_requests)
    found = []
    for mine, theirs in zip(got, expected, strict=True):
        if mine[1] != pytest.approx(theirs[1], rel=1e-9, abs=1e-9):
            found.append(f"request {theirs[0]}: its token times differ")
    for one, other in zip(got_requests, expected_requests, strict=True):
        if one.accounting() != pytest.approx(other.accounting(), rel=1e-9, abs=1e-9):
            found.append(f"request {one.id}: {one.accounting()}, not {other.accounting()}")
    if replica.scheduler.counters != single.counters:
        found.append(f"{replica.scheduler.counters}, not {single.counters}")
    replica.scheduler.kv.check()
    return found


@pytest.mark.parametrize("offloading", get_args(Offloading))
@pytest.mark.parametrize("policy", policy_names())
@pytest.mark.slow
def test_advances_decide_as_single_steps_do(policy: str, offloading: Offloading) -> None:
    for seed in (*SEEDS, *FOUND.get((policy, offloading), ())):
        case = Case.drawn(policy, offloading, seed)
        found = differences(case)
        assert not found, f"seed {seed}: {found}"


@pytest.mark.parametrize("offloading", ["reactive", "auto"])
@pytest.mark.parametrize("policy", policy_names())
def test_advances_decide_as_single_steps_do_with_a_maximum(policy: str, offloading: Offloading) -> None:
    for seed in range(4):
        found = differences(Case.drawn(policy, offloading, seed).on_gpu())
        assert not found, f"seed {seed}: {found}"
