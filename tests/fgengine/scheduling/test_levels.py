"""A policy's levels: their counts equal a count of all requests after any sequence of operations."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fgengine.cost import CostModel
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.mlfq import MAX_LEVELS, MLFQ, SkipJoinMLFQ
from fgengine.scheduling.policy import Level, PolicyContext, make_policy, policy_names

COST = CostModel(step=0.5, prefill_token=1.0, decode_request=0.5, prefill_request=0.0)
CONTEXT = PolicyContext(COST, starvation_limit=20.0, max_batch_size=2)


class CountedByHand(RuleBasedStateMachine):
    """Performs random operations and counts the requests of each level."""

    kind: type[MLFQ]

    def __init__(self) -> None:
        super().__init__()
        self.policy = self.kind(CONTEXT)
        self.requests: list[Request] = []
        self.now = 0.0
        self.made = 0

    @rule(prompt=st.integers(1, 60), max_tokens=st.integers(1, 50))
    def add(self, prompt: int, max_tokens: int) -> None:
        self.made += 1
        request = Request.new(str(self.made), [0] * prompt, SamplingParams(max_tokens=max_tokens), self.now)
        self.requests.append(request)
        self.policy.add(request, self.now)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        self.requests.remove(request)
        self.policy.remove(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), seconds=st.floats(0.01, 40.0))
    def run_one(self, data: st.DataObject, seconds: float) -> None:
        """One request runs and gets a token; all others wait, perhaps until promotion."""
        request = data.draw(st.sampled_from(self.requests))
        self.now += seconds
        request.num_computed = request.num_known
        request.tokens.append(0)
        self.policy.on_step(request, seconds, self.now)

    @rule(seconds=st.floats(0.0, 30.0))
    def walk(self, seconds: float) -> None:
        self.now += seconds
        assert {r.id for r in self.policy.order(self.now)} == {r.id for r in self.requests}

    @invariant()
    def counts_are_right(self) -> None:
        by_hand = Counter(self.policy.level_of(request) for request in self.requests)
        levels = self.policy.levels()
        assert [level.requests for level in levels] == [by_hand[k] for k in range(MAX_LEVELS)]
        assert [level.name for level in levels[:2]] == ["Q1", "Q2"]
        assert [level.quantum for level in levels] == self.policy.quanta


class Plain(CountedByHand):
    kind = MLFQ


class SkipJoin(CountedByHand):
    kind = SkipJoinMLFQ


TestMLFQ = pytest.mark.slow(Plain.TestCase)
TestSkipJoinMLFQ = pytest.mark.slow(SkipJoin.TestCase)


def test_levels_of_a_case_computed_by_hand() -> None:
    """The first quantum is 1 s. A prompt of one token takes 1 s, one of three 3.5 s (third queue)."""
    policy = SkipJoinMLFQ(CONTEXT)
    for id, prompt in (("a", 1), ("b", 3), ("c", 3)):
        policy.add(Request.new(id, [0] * prompt, SamplingParams(), 0.0), 0.0)
    assert policy.levels()[:5] == [
        Level("Q1", 1, 1.0),
        Level("Q2", 0, 2.0),
        Level("Q3", 2, 4.0),
        Level("Q4", 0, 8.0),
        Level("Q5", 0, 16.0),
    ]


@pytest.mark.parametrize("name", [name for name in policy_names() if "mlfq" not in name])
def test_policies_without_queues_have_no_levels(name: str) -> None:
    class Nothing:
        def __getattr__(self, name: str) -> object:
            raise AssertionError("levels need no predictor")

    policy = make_policy(name, PolicyContext(COST, predictor=Nothing()))  # type: ignore[arg-type]
    assert policy.levels() == ()
