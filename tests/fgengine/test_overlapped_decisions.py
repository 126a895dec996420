"""The same workload with and without overlapping steps: tokens and, if possible, decisions are equal."""

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
"""The function-scoped fixture is safe here, because it builds a new engine at each call."""
workloads = st.lists(
    st.tuples(
        st.integers(1, 40), st.integers(1, 20), st.booleans(), st.integers(0, 6), st.sampled_from("ab")
    ),
    min_size=1,
    max_size=10,
)
"""Prompt tokens, max_tokens, whether EOS is ignored, steps until the next request, user."""
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
DISCARDED_IN_THE_NEXT_STEP = [
    (prompt, max_tokens, True, 0, "a")
    for prompt, max_tokens in [(8, 7), (9, 4), (1, 1), (1, 1), (1, 1), (1, 8), (20, 10), (1, 1), (32, 2)]
]
"""One step computes a long prompt, whose tokens pay for the KV that the next step discards."""
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
    for number, (prompt, max_tokens, ignore_eos, steps, user) in enumerate(workload):
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=ignore_eos)
        requests.append(engine.add(str(number), [number + k for k in range(prompt)], params, user=user))
        for _ in range(steps):
            if engine.has_work:
                engine.step()
    while engine.has_work:
        engine.step()
    engine.scheduler.kv.check()
    return requests


def plans(engine: Engine) -> list[list[tuple[str, int, int]]]:
    executed = engine.runner.plans  # type: ignore[attr-defined]
    return [[(item.request.id, item.start, item.num_tokens) for item in plan.items] for plan in executed]


@pytest.mark.parametrize("mode", get_args(Offloading))
@pytest.mark.parametrize("policy", policy_names())
@pytest.mark.slow
def test_tokens_are_equal_and_at_most_one_additional_token_is_computed(
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
                additional = yielded[request] - request.num_generated
                assert 0 <= additional <= (overlap and request.finish_reason == "stop")
            assert engine.stats()["steps"] == engine.work.work_steps == len(made)
        assert tokens[True] == tokens[False]

    check()


@pytest.mark.parametrize("mode", ["none", "recompute"])
@pytest.mark.parametrize("policy", ["static", "fcfs", "sjf"])
@pytest.mark.slow
def test_decisions_that_depend_on_no_step_result_are_equal(
    symbolic_engine: Build, policy: str, mode: str
) -> None:
    """All requests arrive at the start and end by their lengths; the order depends on no time or token."""

    @QUICK
    @given(workloads, machines)
    @example(DISCARDED_IN_THE_NEXT_STEP, SMALL)
    def check(workload: list[tuple[int, int, bool, int, str]], sizes: dict[str, Any]) -> None:
        at_once = [(prompt, max_tokens, True, 0, user) for prompt, max_tokens, _, _, user in workload]
        made = {}
        for overlap in (False, True):
            engine = symbolic_engine(policy, offloading=mode, overlap=overlap, **sizes)
            preemptions = [request.preemptions for request in serve(engine, at_once)]
            made[overlap] = plans(engine), preemptions, engine.stats()["recomputed_tokens"]
        assert made[True] == made[False]

    check()
