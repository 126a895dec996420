"""Static batching: orders computed by hand, and batches made by the scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable

from fgengine.engine import Engine
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import Policy, PolicyContext, make_policy

Build = Callable[..., Engine]


def make(id: str, max_tokens: int = 10) -> Request:
    return Request.new(id, [0, 0], SamplingParams(max_tokens=max_tokens, ignore_eos=True), 0.0)


def order(policy: Policy) -> str:
    return "".join(request.id for request in policy.order(0.0))


def test_no_request_joins_a_running_batch_and_the_next_has_the_earliest() -> None:
    policy = make_policy("static", PolicyContext(max_batch_size=2))
    a, b, c, d, e = requests = [make(id) for id in "abcde"]
    for request in requests[:3]:
        policy.add(request, 0.0)
    assert order(policy) == "ab"
    policy.remove(a)
    policy.add(d, 1.0)
    assert order(policy) == "b"  # the place of a remains empty
    policy.remove(c)  # aborted while it waits
    policy.add(e, 2.0)
    policy.remove(b)
    assert order(policy) == "de"


def test_waiting_requests_come_after_the_batch() -> None:
    policy = make_policy("static", PolicyContext(max_batch_size=2))
    a, b, c, d = requests = [make(id) for id in "abcd"]
    for request in requests:
        policy.add(request, 0.0)
    assert order(policy) == "ab"
    assert sorted({d, c, b, a}, key=policy.priority) == requests
    assert policy.steady_seconds(requests[:2], 0.0) == math.inf


def test_a_batch_lasts_as_long_as_its_longest_answer(symbolic_engine: Build) -> None:
    engine = symbolic_engine("static", max_batch_size=2)
    outputs = {"a": 2, "b": 6, "c": 1, "d": 3}
    for id, max_tokens in outputs.items():
        engine.add(id, [1] * 3, SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True))
    batches = []
    while engine.has_work:
        engine.step()
        plan = engine.runner.plans[-1]  # type: ignore[attr-defined]
        batches.append("".join(item.request.id for item in plan.items))
    assert batches == ["ab", "ab", "b", "b", "b", "b", "cd", "d", "d"]


def test_a_batch_too_large_for_the_memory_still_completes(symbolic_engine: Build) -> None:
    engine = symbolic_engine("static", device_blocks=8, host_blocks=0, max_batch_size=4)
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    answers = engine.generate([[id] * 9 for id in range(6)], params)
    assert [request.num_generated for request in answers] == [12] * 6
