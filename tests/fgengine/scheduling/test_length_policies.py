"""Policies that rank by length: orders computed by hand, and properties that hold for all policies."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgengine.cost import CostModel
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import Policy, PolicyContext, make_policy, policy_class, policy_names
from fgengine.scheduling.predictor import Noisy, Oracle, Prediction
from fgengine.scheduling.srpt import on_grid

# A prompt token and an output token take one second each; context costs nothing.
COST = CostModel(step=1e-9, prefill_token=1.0, decode_request=1.0)


class FixedLengths(Oracle):
    """Predicts the lengths given by the test."""

    def __init__(self, lengths: dict[str, float], sigma: float = 0.0) -> None:
        self.lengths, self.sigma = lengths, sigma

    def predict(self, request: Request) -> Prediction:
        return Prediction(self.lengths[request.id], self.sigma)


def context(
    cost: CostModel = COST, limit: float = 100.0, sigma: float = 0.0, **lengths: float
) -> PolicyContext:
    return PolicyContext(cost, limit, max_batch_size=4, predictor=FixedLengths(lengths, sigma))


def make(id: str, prompt_len: int = 2, max_tokens: int = 5000, arrival: float = 0.0) -> Request:
    return Request.new(id, [0] * prompt_len, SamplingParams(max_tokens=max_tokens), arrival)


def added(policy: Policy, *requests: Request) -> None:
    for request in requests:
        policy.add(request, request.arrival)


def order(policy: Policy, now: float = 0.0) -> str:
    requests = list(policy.order(now))
    assert sorted(requests, key=policy.priority) == requests
    return "".join(request.id for request in requests)


def ran(policy: Policy, request: Request, tokens: int = 1) -> None:
    """Let the request compute its pending tokens and get a new token, ``tokens`` times."""
    for _ in range(tokens):
        if request.num_computed == 0:
            policy.on_start(request)
        request.num_computed = request.num_known
        request.tokens.append(0)
        policy.on_step(request, 1.0, 0.0)


def ran_piece(policy: Policy, request: Request, tokens: int) -> None:
    """Let the request compute ``tokens`` tokens of its prompt."""
    if request.num_computed == 0:
        policy.on_start(request)
    request.num_computed += tokens
    policy.on_step(request, 1.0, 0.0)


# -- srpt --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, 1, 15, 16, 17, 100, 1023, 4097])
def test_rounding_to_the_grid_has_an_error_below_one_eighth(tokens: int) -> None:
    assert on_grid(tokens) <= tokens <= on_grid(tokens) * 9 / 8
    assert on_grid(tokens + 1) >= on_grid(tokens)
    assert len({on_grid(t) for t in range(4096)}) < 16 + 8 * 9


def test_srpt_counts_the_rest_of_the_prompt_and_of_the_answer() -> None:
    policy = make_policy("srpt", context())
    a, b, c = make("a", 2, 10), make("b", 9, 2), make("c", 3, 10)
    added(policy, c, b, a)
    assert order(policy) == "bac"  # 11, 12 and 13 s
    ran(policy, c)
    assert order(policy) == "cba"  # c's prompt is computed: 9 s remain
    ran_piece(policy, a, 1)
    assert order(policy) == "cab"  # 1 of 2 prompt tokens is computed


def test_srpt_counts_the_progress_of_a_chunked_prompt() -> None:
    policy = make_policy("srpt", context())
    a, b = make("a", 20, 5), make("b", 15, 5)
    added(policy, a, b)
    assert order(policy) == "ba"
    ran_piece(policy, a, 12)
    assert order(policy) == "ab"  # 8 + 5 s remain, compared with 20 s


def test_srpt_charges_a_decode_for_the_prompt_it_attends_to() -> None:
    attention = CostModel(step=1e-9, prefill_token=1e-6, decode_request=1.0, decode_context=0.01)
    policy = make_policy("srpt", context(attention))
    long, short = make("l", 1000, 10), make("s", 10, 12)
    added(policy, long, short)
    assert order(policy) == "sl"  # 12 tokens of about 1.1 s, compared with 10 tokens of 11 s
    ran(policy, long)
    assert order(policy) == "sl"


def test_running_only_moves_a_request_forward_under_srpt() -> None:
    """``steady_seconds`` relies on this: a running request never moves back in the order."""
    attention = CostModel(step=1e-3, prefill_token=1e-9, decode_request=1e-3, decode_context=1e-4)
    policy = make_policy("srpt", context(attention))
    request = make("a", 3, 300)
    added(policy, request)
    place = policy.priority(request)
    for _ in range(299):
        ran(policy, request)
        assert policy.priority(request) <= place
        place = policy.priority(request)


# -- sjf ---------------------------------------------------------------------------------------------------


def test_sjf_runs_the_shortest_prediction_regardless_of_the_prompt() -> None:
    policy = make_policy("sjf", context(a=500, b=20, c=100))
    added(policy, make("a", 1), make("b", 900), make("c", 30))
    assert order(policy) == "bca"


def test_sjf_runs_started_requests_to_completion() -> None:
    policy = make_policy("sjf", context(a=500, b=20, c=100))
    a, b, c = make("a"), make("b"), make("c", prompt_len=50)
    added(policy, a, c)
    ran(policy, a)
    added(policy, b)
    assert order(policy) == "abc"
    ran_piece(policy, c, 10)  # started: a part of its prompt is computed
    assert order(policy) == "cab"
    ran(policy, a, 20)
    assert order(policy) == "cab"
    a.num_computed = 0  # its KV is discarded; it keeps its place
    assert order(policy) == "cab"
    policy.remove(c)
    assert order(policy) == "ab"


def test_sjf_ages_requests_by_their_arrival() -> None:
    policy = make_policy("sjf", context(limit=100.0, a=1024, b=512, c=1))
    added(policy, make("a", arrival=0.0), make("b", arrival=49.0))
    assert order(policy) == "ba"  # deadlines: 100 compared with 49 + 50
    policy = make_policy("sjf", context(limit=100.0, a=1024, b=512, c=1))
    added(policy, make("a", arrival=0.0), make("b", arrival=51.0))
    assert order(policy) == "ab"
    added(policy, make("c", arrival=99.0))
    assert order(policy) == "cab"
    policy.remove(next(iter(policy.order(0.0))))
    assert order(policy) == "ab"


arrivals = st.lists(
    st.tuples(st.floats(0.0, 300.0), st.floats(1.0, 1e6), st.booleans()), min_size=2, max_size=30
)


@given(arrivals, st.floats(0.1, 100.0))
@pytest.mark.slow
def test_sjf_never_lets_a_much_later_arrival_overtake(
    given: list[tuple[float, float, bool]], limit: float
) -> None:
    given = sorted(given)
    lengths = {str(number): length for number, (_, length, _) in enumerate(given)}
    policy = make_policy("sjf", context(limit=limit, **lengths))
    requests = [make(str(number), arrival=arrival) for number, (arrival, _, _) in enumerate(given)]
    added(policy, *requests)
    begun = [request for request, (_, _, begins) in zip(requests, given, strict=True) if begins]
    for request in begun:
        ran(policy, request)
    found = list(policy.order(0.0))
    assert set(found[: len(begun)]) == set(begun)
    waiting = found[len(begun) :]
    for place, first in enumerate(waiting):
        assert all(first.arrival - later.arrival <= limit + 1e-9 for later in waiting[place:])


# -- sprpt -------------------------------------------------------------------------------------------------


def test_sprpt_preempts_for_a_request_with_less_predicted_time_left() -> None:
    policy = make_policy("sprpt", context(a=100, b=50, c=30))
    a, b, c = make("a"), make("b"), make("c", prompt_len=40)
    added(policy, a, b, c)
    assert order(policy) == "bca"  # 52, 70 and 102 s
    ran(policy, a, 60)
    assert order(policy) == "abc"  # 40 s
    ran(policy, b, 15)
    assert order(policy) == "bac"  # 35 s


def test_sprpt_does_not_preempt_a_request_near_its_end() -> None:
    policy = make_policy("sprpt", context(a=100, b=5))
    a, b = make("a"), make("b")
    added(policy, a)
    ran(policy, a, 79)
    added(policy, b)
    assert order(policy) == "ba"  # 72 of 100 tokens, rounded to the grid
    ran(policy, a, 1)
    assert order(policy) == "ab"  # 80 tokens reach the share of 0.8
    ran(policy, a, 60)  # more than predicted
    assert order(policy) == "ab"


def test_sprpt_raises_its_prediction_for_an_answer_longer_than_predicted() -> None:
    policy = make_policy("sprpt", context(sigma=1.0, a=20, b=60))
    a, b = make("a"), make("b")
    added(policy, a, b)
    assert order(policy) == "ab"
    expected = [policy.priority(a)[1]]
    for _ in range(4):
        ran(policy, a, 64)
        expected.append(policy.priority(a)[1])
    assert expected[1:] == sorted(expected[1:])
    assert expected[-1] > expected[0]
    assert order(policy) == "ba"  # a is no longer the first


# -- all of them -------------------------------------------------------------------------------------------

actions = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 40), st.integers(1, 60)),
    st.tuples(st.just("step"), st.integers(1, 4), st.integers(0, 3)),
    st.tuples(st.just("abort"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("drop"), st.integers(0, 30), st.just(0)),
)


@pytest.mark.parametrize("name", policy_names())
@given(st.lists(actions, max_size=60), st.integers(0, 100))
@pytest.mark.slow
def test_priorities_ascend_along_the_order_after_any_operations(
    name: str, happens: list[tuple[str, int, int]], seed: int
) -> None:
    cost = CostModel(step=0.01, prefill_token=1e-3, decode_request=1e-3, decode_context=1e-5)
    policy = make_policy(name, PolicyContext(cost, 0.5, max_batch_size=4, predictor=Noisy(0.7)))
    alive: dict[str, Request] = {}
    now = 0.0

    def ends(request: Request, reason: str) -> None:
        del alive[request.id]
        request.finish("abort" if reason == "abort" else "length", now)
        policy.remove(request)

    for number, (what, size, detail) in enumerate(happens):
        now += 0.03
        if what == "add":
            params = SamplingParams(max_tokens=detail)
            request = Request.new(f"{seed}-{number}", [0] * size, params, now, user=f"user {size % 3}")
            alive[request.id] = request
            policy.add(request, now)
        elif what == "step":
            batch = [request for _, request in zip(range(size), policy.order(now), strict=False)]
            for request in batch:
                if request.num_computed == 0:
                    policy.on_start(request)
            for place, request in enumerate(batch):
                if place == 0 and request.num_pending > detail > 0:
                    request.num_computed += detail  # a part of its pending tokens
                    policy.on_step(request, 0.02, now)
                    continue
                request.num_computed = request.num_known
                request.tokens.append(0)
                if request.num_generated == request.params.max_tokens:
                    ends(request, "length")
                else:
                    policy.on_step(request, 0.02, now)
        elif alive:
            request = list(alive.values())[size % len(alive)]
            if what == "abort":
                ends(request, "abort")
            else:
                request.num_computed = 0  # its KV is discarded
        order = list(policy.order(now))
        places = [policy.priority(request) for request in order]
        assert all(place < next_place for place, next_place in pairwise(places))
        assert {request.id for request in order} <= set(alive)
        assert bool(order) == bool(alive)
        if name != "static":  # static yields no waiting requests while a batch runs
            assert len(order) == len(alive)


@pytest.mark.parametrize("name", policy_names())
def test_every_policy_has_a_summary_and_a_source(name: str) -> None:
    policy = policy_class(name)
    assert policy.summary
    assert policy.paper
    assert not policy.summary.endswith(".")
    assert policy.summary != policy.__mro__[1].summary  # not inherited


@pytest.mark.parametrize("name", ["sjf", "sprpt"])
def test_a_predicting_policy_needs_a_predictor(name: str) -> None:
    assert policy_class(name).needs_predictor
    with pytest.raises(ValueError, match="predictor"):
        make_policy(name, PolicyContext(COST))
