"""Memory pressure: when it begins and ends, which requests run, and how little work an overload discards."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

import pytest

from fgengine.engine import Engine
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import policy_names
from fgengine.scheduling.pressure import TOKENS_PER_DISCARDED, RecomputeBudget, peak_blocks

Build = Callable[..., Engine]
MODES = ["none", "reactive", "proactive", "blocking", "recompute", "auto"]


def params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def serve(engine: Engine, seed: int, number: int, gap: float) -> list[Request]:
    """Serve ``number`` requests of mixed lengths that arrive every ``gap`` seconds; return them."""
    source = random.Random(seed)
    requests: list[Request] = []
    while engine.has_work or len(requests) < number:
        while len(requests) < number and engine.clock.now() >= gap * len(requests):
            prompt = [1] * source.randint(1, 40)
            requests.append(engine.add(str(len(requests)), prompt, params(source.randint(1, 60))))
        if engine.has_work:
            engine.step()
        else:
            engine.clock.advance(gap)  # type: ignore[attr-defined]
    return requests


def discarded_share(engine: Engine, requests: list[Request]) -> float:
    discarded = engine.scheduler.counters.recomputed_tokens
    return discarded / (discarded + sum(len(request.tokens) for request in requests))


def seconds_of_an_overload(build: Build, policy: str, mode: str, device: int, host: int) -> float:
    """Serve 150 requests far above capacity and return the seconds. At most 5% of the work is discarded."""
    engine = build(policy, device_blocks=device, host_blocks=host, offloading=mode, eager_copies=True, seed=1)
    requests = serve(engine, seed=3, number=150, gap=0.01)
    assert all(request.finished for request in requests)
    assert discarded_share(engine, requests) < 0.05, (policy, mode, device, host)
    return engine.clock.now()


OVERLOADS = list(product(MODES, [(60, 0), (60, 60), (200, 100)]))
"""Offloading modes, each with the blocks of small and large pools on the device and on the host."""


@pytest.fixture(scope="module")
def fcfs_seconds(symbolic_engine: Build) -> dict[tuple[str, tuple[int, int]], float]:
    """Return how long each overload takes under fcfs, which discards little work too."""
    return {
        (mode, pools): seconds_of_an_overload(symbolic_engine, "fcfs", mode, *pools)
        for mode, pools in OVERLOADS
    }


@pytest.mark.parametrize("policy", [name for name in policy_names() if name != "fcfs"])
@pytest.mark.slow
def test_a_long_overload_takes_as_long_as_under_fcfs_and_discards_little(
    policy: str, symbolic_engine: Build, fcfs_seconds: dict[tuple[str, tuple[int, int]], float]
) -> None:
    """Far above capacity, with small and large pools.

    Static batching takes longer, because it leaves places in the batch empty.
    """
    for mode, pools in OVERLOADS:
        seconds = seconds_of_an_overload(symbolic_engine, policy, mode, *pools)
        if policy != "static":  # the last few requests do not fill a batch, hence 1.1
            assert seconds <= 1.1 * fcfs_seconds[mode, pools], (mode, pools)


def test_under_pressure_no_request_starts_and_started_ones_run_by_arrival(symbolic_engine: Build) -> None:
    engine = symbolic_engine("mlfq", device_blocks=60, host_blocks=60, max_batch_size=4, eager_copies=True)
    for i in range(12):
        engine.add(f"old{i}", [1] * 20, params(50))
    scheduler = engine.scheduler
    while not scheduler.under_pressure:
        engine.step()
    engine.add("short", [1], params(1))  # first in the policy's order
    ran: list[str] = []
    for _ in range(20):
        assert scheduler.under_pressure
        engine.step()
        ran += [item.request.id for item in engine.runner.plans[-1].items]  # type: ignore[attr-defined]
    assert "short" not in ran
    assert max(ran, key=ran.count) == "old0"
    assert 0.0 < scheduler.counters.pressure_seconds < engine.clock.now()
    while engine.has_work:
        engine.step()
    assert not scheduler.under_pressure
    spent = scheduler.counters.pressure_seconds
    engine.generate([[1]], params(1))
    assert scheduler.counters.pressure_seconds == pytest.approx(spent, abs=0.02)


def test_with_eager_admission_only_full_pools_begin_pressure(symbolic_engine: Build) -> None:
    def overload(admission: str, host_blocks: int) -> Engine:
        engine = symbolic_engine(
            "mlfq", device_blocks=60, host_blocks=host_blocks, eager_copies=True, admission=admission
        )
        assert all(request.finished for request in serve(engine, seed=3, number=60, gap=0.01))
        return engine

    guarded, eager = overload("guarded", 600), overload("eager", 600)
    assert guarded.scheduler.counters.pressure_seconds > 0.0
    assert eager.scheduler.counters.recomputed_tokens == 0
    assert eager.scheduler.counters.pressure_seconds == 0.0
    small = overload("eager", 20)  # the host pool is too small for all of them
    assert small.scheduler.counters.pressure_seconds > 0.0


def test_without_short_memory_the_policys_order_is_used(symbolic_engine: Build) -> None:
    engine = symbolic_engine("sj-mlfq", device_blocks=4000, host_blocks=100)
    serve(engine, seed=5, number=100, gap=0.1)  # an arrival rate near the capacity
    assert engine.scheduler.counters.pressure_seconds == 0.0


def test_discarded_work_is_a_debt_that_computed_tokens_pay() -> None:
    budget = RecomputeBudget()
    budget.computed(1000)  # work before the debt does not count
    assert not budget.in_debt
    budget.discarded(8)
    assert budget.in_debt
    steps = budget.steps_in_debt(10)
    assert steps == 8 * TOKENS_PER_DISCARDED / 10
    for _ in range(steps - 1):
        budget.computed(10)
    assert budget.in_debt
    budget.computed(10)
    assert not budget.in_debt


def test_the_peak_excludes_requests_that_end_before_it() -> None:
    def request(prompt: int, output: int) -> Request:
        return Request.new("r", [0] * prompt, params(output), 0.0)

    # After 4 more tokens the short request holds 14 and ends; the long one holds 24 then, and 39 at its end.
    pair = [request(10, 5), request(20, 20)]
    assert peak_blocks(pair, block_size=1) == max(14 + 24, 39) + 2
    assert peak_blocks(pair[:1], block_size=1) == 14 + 1
