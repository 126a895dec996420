"""The limit of work in progress: far above capacity, requests finish instead of only being started."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fgengine.cost import CostModel
from fgengine.engine import Engine
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.work_in_progress import (
    ENOUGH_SHARE,
    FAR_ABOVE,
    MAX_SHARE,
    MIN_REQUESTS,
    WorkInProgress,
)

Build = Callable[..., Engine]
COST = CostModel(step=0.008, prefill_token=0.002, decode_request=0.0005)
"""A prompt of 100 tokens takes 0.2 s, and so does an answer of 80 tokens in batches of 4."""


def params(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def finished_after(seconds: float, policy: str, rate: float, build: Build) -> int:
    engine = build(
        policy,
        device_blocks=40_000,
        max_batch_size=4,
        max_tokens_per_batch=256,
        cost=COST,
        starvation_limit=1000.0,
    )
    added = 0
    while engine.clock.now() < seconds:
        while added < rate * engine.clock.now() + 1:
            engine.add(str(added), [1] * 100, params(80))
            added += 1
        engine.step()
    return engine.scheduler.counters.finished


@pytest.mark.parametrize("policy", ["mlfq", "sj-mlfq", "sj-mlfq-artifact", "vtc"])
@pytest.mark.parametrize("times_capacity", [2, 10])
@pytest.mark.slow
def test_far_above_capacity_nearly_as_many_requests_finish_as_under_fcfs(
    policy: str, times_capacity: int, symbolic_engine: Build
) -> None:
    """Memory is sufficient for all requests, so only the work in progress limits the starts."""
    rate = times_capacity * 2.5
    fcfs = finished_after(60.0, "fcfs", rate, symbolic_engine)
    assert fcfs > 100
    assert finished_after(60.0, policy, rate, symbolic_engine) >= 0.65 * fcfs


def test_work_is_in_progress_until_its_request_ends() -> None:
    work = WorkInProgress(COST, max_batch_size=2)
    requests = [Request.new(str(i), [0] * 100, params(81), 0.0) for i in range(3 * MIN_REQUESTS)]
    for request in requests:
        work.started(request)
        work.computed(StepPlan(0, [PlanItem(request, 0, 100, [], True)]), 1)
        request.num_computed = 100
        request.tokens.append(0)
    each = COST.share_seconds(100, 81, 2)
    assert work.is_too_much(1000)  # all work is in progress, and it is more than that of 32 requests
    assert not work.is_too_much(
        int(FAR_ABOVE * len(requests) * 0.2 / each)
    )  # a smaller backlog: not far above capacity
    assert not work.is_moderate
    for request in requests[: 2 * MIN_REQUESTS + 10]:
        work.computed(StepPlan(0, [PlanItem(request, 100, 1, [], True)]), 80)
        request.tokens.extend([0] * 80)
        request.num_computed = 180
        request.finish("length", 1.0)
        work.ended(request)
    assert not work.is_too_much(1000)
    assert work.is_moderate
    work.idle()
    assert not work.is_too_much(1000)


def test_without_a_cost_model_there_is_no_limit() -> None:
    work = WorkInProgress(None, max_batch_size=2)
    request = Request.new("a", [0] * 100, params(81), 0.0)
    work.started(request)
    work.computed(StepPlan(0, [PlanItem(request, 0, 100, [], True)]), 1000)
    assert not work.is_too_much(1000)
    assert work.is_moderate


def test_the_shares_leave_a_gap() -> None:
    assert ENOUGH_SHARE < MAX_SHARE < 1.0
