"""The same workload with overlapping steps and without: what must be the same is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fgengine.config import Offloading
from fgengine.engine import Engine
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import policy_names

Build = Callable[..., Engine]
EOS = frozenset(range(0, 1009, 11))
QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""A function-scoped fixture that builds anew each time is none to be reset."""
workloads = st.lists(
    st.tuples(
        st.integers(1, 40), st.integers(1, 20), st.booleans(), st.integers(0, 6), st.sampled_from("ab")
    ),
    min_size=1,
    max_size=10,
)
"""Prompt tokens, max_tokens, whether EOS is ignored, steps until the next one comes, user."""
machines = st.fixed_dictionaries(
    {
        "device_blocks": st.integers(15, 40),
        "host_blocks": st.sampled_from([0, 10, 100]),
        "max_batch_size": st.integers(1, 6),
        "max_tokens_per_batch": st.sampled_from([1, 6, 64]),
        "chunked_prefill": st.booleans(),
        "starvation_limit": st.sampled_from([0.1, 30.0]),
    }
)
THROWN_AWAY_IN_THE_NEXT_STEP = [
    (prompt, most, True, 0, "a")
    for prompt, most in [(8, 7), (9, 4), (1, 1), (1, 1), (1, 1), (1, 8), (20, 10), (1, 1), (32, 2)]
]
"""A long prompt is computed in one step and KV is thrown away in the next: the first pays for the second."""
SMALL = {
    "device_blocks": 16,
    "host_blocks": 0,
    "max_batch_size": 4,
    "max_tokens_per_batch": 64,
    "chunked_prefill": False,
    "starvation_limit": 0.1,
}


def serve(engine: Engine, workload: list[tuple[int, int, bool, int, str]]) -> list[Request]:
    requests = []
    for number, (prompt, most, ignore_eos, steps, user) in enumerate(workload):
        wanted = SamplingParams(max_tokens=most, temperature=0.0, ignore_eos=ignore_eos)
        requests.append(engine.add(str(number), [number + k for k in range(prompt)], wanted, user=user))
        for _ in range(steps):
            if engine.has_work:
                engine.step()
    while engine.has_work:
        engine.step()
    engine.scheduler.kv.check()
    return requests


def plans(engine: Engine) -> list[list[tuple[str, int, int]]]:
    made = engine.runner.plans  # type: ignore[attr-defined]
    return [[(item.request.id, item.start, item.num_tokens) for item in plan.items] for plan in made]


@pytest.mark.parametrize("mode", get_args(Offloading))
@pytest.mark.parametrize("policy", policy_names())
def test_tokens_are_the_same_and_no_more_is_computed_for_nothing_than_must_be(
    symbolic_engine: Build, policy: str, mode: str
) -> None:
    @QUICK
    @given(workloads, machines)
    def check(workload: list[tuple[int, int, bool, int, str]], sizes: dict[str, Any]) -> None:
        tokens = {}
        for overlap in (False, True):
            engine = symbolic_engine(policy, offloading=mode, overlap=overlap, eos=EOS, **sizes)
            requests = serve(engine, workload)
            tokens[overlap] = [(list(request.tokens), request.finish_reason) for request in requests]
            made = engine.runner.plans  # type: ignore[attr-defined]
            yielded = Counter(item.request for plan in made for item in plan.items if item.yields_token)
            for request in requests:
                once_more = yielded[request] - request.num_generated
                assert 0 <= once_more <= (overlap and request.finish_reason == "stop")
            assert engine.stats()["steps"] == engine.work.work_steps == len(made)
        assert tokens[True] == tokens[False]

    check()


@pytest.mark.parametrize("mode", ["none", "recompute"])
@pytest.mark.parametrize("policy", ["static", "fcfs", "sjf"])
def test_what_hangs_on_no_step_is_decided_alike(symbolic_engine: Build, policy: str, mode: str) -> None:
    """All there from the start, ending by their lengths, ordered by neither times nor tokens."""

    @QUICK
    @given(workloads, machines)
    @example(THROWN_AWAY_IN_THE_NEXT_STEP, SMALL)
    def check(workload: list[tuple[int, int, bool, int, str]], sizes: dict[str, Any]) -> None:
        at_once = [(prompt, most, True, 0, user) for prompt, most, _, _, user in workload]
        made = {}
        for overlap in (False, True):
            engine = symbolic_engine(policy, offloading=mode, overlap=overlap, **sizes)
            preemptions = [request.preemptions for request in serve(engine, at_once)]
            made[overlap] = plans(engine), preemptions, engine.stats()["recomputed_tokens"]
        assert made[True] == made[False]

    check()
