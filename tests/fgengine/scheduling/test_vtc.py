"""Fairness among users: orders computed by hand, a simple reference model, and the paper's bound."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgengine.clock import VirtualClock
from fgengine.cost import CostModel
from fgengine.engine import Engine
from fgengine.kv.manager import KVManager
from fgengine.request import Request, SamplingParams
from fgengine.scheduling import vtc
from fgengine.scheduling.policy import PolicyContext, make_policy
from fgengine.scheduling.scheduler import Scheduler
from fgengine.scheduling.step_builder import Limits
from fgengine.scheduling.vtc import VTC
from fgengine.simulation.copying import SimulatedCopyEngine
from fgengine.simulation.runner import SimulatedRunner

Build = Callable[..., Engine]


def make(id: str, user: str, prompt_len: int = 10, max_tokens: int = 10) -> Request:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return Request.new(id, [0] * prompt_len, params, 0.0, user)


def order(policy: VTC) -> str:
    requests = list(policy.order(0.0))
    assert sorted(requests, key=policy.priority) == requests
    return "".join(request.id for request in requests)


def ran(policy: VTC, request: Request) -> None:
    """Let the request compute its pending tokens and get a new token."""
    if request.num_computed == 0:
        policy.on_start(request)
    request.num_computed = request.num_known
    request.tokens.append(0)
    if request.num_generated == request.params.max_tokens:
        request.finish("length", 0.0)
        policy.remove(request)
    else:
        policy.on_step(request, 1.0, 0.0)


def test_users_take_turns_regardless_of_their_numbers_of_requests() -> None:
    policy = VTC(PolicyContext())
    for id in "abcd":
        policy.add(make(id, "flood"), 0.0)
    for id in "xy":
        policy.add(make(id, "polite"), 0.0)
    assert order(policy) == "axbycd"


def test_prompt_and_output_tokens_decide_which_user_is_next() -> None:
    policy = VTC(PolicyContext())
    a, b, x, y = make("a", "A", 30), make("b", "A"), make("x", "B", 10), make("y", "B")
    for request in (a, b, x, y):
        policy.add(request, 0.0)
    assert order(policy) == "axyb"  # after a and x the counters are 30 and 10, then 30 and 20
    ran(policy, a)
    ran(policy, x)
    assert (policy.counter_of("A"), policy.counter_of("B")) == (30 + 2, 10 + 2)
    for _ in range(9):
        ran(policy, x)
    assert policy.counter_of("B") == 10 + 20
    ran(policy, a)
    assert order(policy) == "ayb"  # a has started and continues; the counters are 34 and 30
    for _ in range(3):
        ran(policy, a)
    assert order(policy) == "ayb"
    assert policy.priority(y) < policy.priority(b)


def test_an_idle_users_counter_is_raised_and_a_served_users_is_stored() -> None:
    policy = VTC(PolicyContext())
    a, b = make("a", "A"), make("b", "A")
    policy.add(a, 0.0)
    policy.add(b, 0.0)
    for _ in range(10):
        ran(policy, a)
    assert policy.counter_of("A") == 30
    policy.add(make("x", "B"), 0.0)
    assert policy.counter_of("B") == 30  # an idle user gets no credit
    assert order(policy) == "bx"
    for _ in range(10):
        ran(policy, b)  # A has no requests any more; its counter is 60
    policy.add(make("y", "B"), 0.0)
    policy.add(make("c", "A"), 0.0)
    assert policy.counter_of("A") == 60  # the counter was stored
    assert order(policy) == "xyc"


def test_started_requests_remain_first_in_order_of_start() -> None:
    policy = VTC(PolicyContext())
    a, x = make("a", "A", 5), make("x", "B", 50)
    policy.add(a, 0.0)
    policy.add(x, 0.0)
    ran(policy, x)
    ran(policy, a)
    policy.add(make("z", "C"), 0.0)
    assert order(policy) == "xaz"


def test_a_recomputed_prompt_is_charged_once() -> None:
    policy = VTC(PolicyContext())
    a = make("a", "A")
    policy.add(a, 0.0)
    ran(policy, a)
    a.num_computed = 0  # its KV is discarded
    ran(policy, a)
    assert policy.counter_of("A") == 10 + 2 * 2


def test_an_abort_in_a_queue_moves_later_requests_forward() -> None:
    policy = VTC(PolicyContext())
    a, b, c = (make(id, "A") for id in "abc")
    x, y = make("x", "B", 15), make("y", "B", 15)
    for request in (a, b, c, x, y):
        policy.add(request, 0.0)
    assert order(policy) == "axbyc"
    policy.remove(b)
    assert order(policy) == "axcy"
    assert policy.counter_of("A") == 0


def test_counters_of_users_inactive_for_long_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vtc, "REMEMBERED_USERS", 3)
    policy = VTC(PolicyContext())
    for number in range(20):
        request = make("a", f"user {number}", max_tokens=1)
        policy.add(request, 0.0)
        ran(policy, request)
    assert [policy.counter_of(f"user {number}") > 0 for number in range(20)] == [False] * 17 + [True] * 3
    assert len(policy._users) == len(policy._waiting) == len(policy._jobs) == 0


class Naive:
    """The paper's algorithm 2 in its simplest form: it never drops counters and scans the complete queue."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.waiting: list[Request] = []
        self.last = ""

    def arrives(self, request: Request) -> None:
        others = {other.user for other in self.waiting}
        if request.user not in others:
            level = min(self.counters[user] for user in others) if others else self.counters[self.last]
            self.counters[request.user] = max(self.counters[request.user], level)
        self.waiting.append(request)

    def leaves(self, request: Request, *, started: bool) -> None:
        self.waiting.remove(request)
        if not any(other.user == request.user for other in self.waiting):
            self.last = request.user
        if started:
            self.counters[request.user] += request.prompt_len

    def check(self, order: list[Request]) -> None:
        """Assert that each request is the earliest of a user with the smallest counter.

        The requests before it are charged.
        """
        counters, waiting = self.counters.copy(), list(self.waiting)
        for request in order:
            smallest = min(counters[other.user] for other in waiting)
            assert counters[request.user] == smallest
            assert request is next(other for other in waiting if other.user == request.user)
            counters[request.user] += request.prompt_len
            waiting.remove(request)
        assert not waiting


actions = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("ABCD"), st.integers(1, 20), st.integers(1, 4)),
    st.tuples(st.just("step"), st.integers(1, 4)),
    st.tuples(st.just("skip one and step"), st.integers(2, 4)),
    st.tuples(st.just("abort"), st.integers(0, 30)),
)


@given(st.lists(actions, max_size=60))
def test_it_equals_the_papers_algorithm_and_priority_matches_order(history: list[tuple[object, ...]]) -> None:
    policy, naive = VTC(PolicyContext()), Naive()
    requests: dict[str, Request] = {}
    for number, (action, *args) in enumerate(history):
        if action == "add":
            user, prompt_len, max_tokens = args
            assert isinstance(user, str)
            assert isinstance(prompt_len, int)
            assert isinstance(max_tokens, int)
            request = requests[str(number)] = make(str(number), user, prompt_len, max_tokens)
            policy.add(request, 0.0)
            naive.arrives(request)
        elif action == "abort" and requests:
            (chosen,) = args
            assert isinstance(chosen, int)
            request = list(requests.values())[chosen % len(requests)]
            request.finish("abort", 0.0)
            policy.remove(request)
            if request in naive.waiting:
                naive.leaves(request, started=False)
            del requests[request.id]
        elif action != "abort":
            (count,) = args
            assert isinstance(count, int)
            batch = list(policy.order(0.0))[:count]
            for request in batch[action == "skip one and step" :]:  # the first waits for a copy
                if request in naive.waiting:
                    naive.leaves(request, started=True)
                ran(policy, request)
                naive.counters[request.user] += 2
                if request.finished:
                    del requests[request.id]
        found = list(policy.order(0.0))
        assert sorted(found, key=lambda request: request.id) == sorted(
            requests.values(), key=lambda request: request.id
        )
        assert sorted(found, key=policy.priority) == found
        assert len({policy.priority(request) for request in found}) == len(found)
        naive.check([request for request in found if request in naive.waiting])
        for user in "ABCD":
            assert policy.counter_of(user) == naive.counters[user]


COST = CostModel(step=0.02, prefill_token=0.0005, decode_request=0.001)
BATCH_SIZE, LONGEST_PROMPT, LONGEST_OUTPUT = 8, 64, 64


def contest(policy: str) -> int:
    """Return the largest difference in service between two waiting users; one sends far more requests."""
    clock = VirtualClock()
    scheduler = Scheduler(
        make_policy(policy, PolicyContext(COST, max_batch_size=BATCH_SIZE)),
        KVManager(400, 0, 16),
        Limits(256, 256),
    )
    engine = Engine(scheduler, SimulatedRunner(COST, clock), SimulatedCopyEngine(clock, 1, 1e9), clock)
    source = random.Random(0)
    requests: list[Request] = []
    for user, count in (("flood", 600), ("polite", 150)):
        for number in range(count):
            prompt = [0] * source.randint(1, LONGEST_PROMPT)
            # The answers of "flood" are also longer, so fairness by number of requests would favour it.
            output = source.randint(LONGEST_OUTPUT // 2, LONGEST_OUTPUT) if user == "flood" else 16
            params = SamplingParams(max_tokens=output, ignore_eos=True)
            requests.append(engine.add(f"{user} {number}", prompt, params, user=user))
    largest = 0
    while True:
        waiting = {request.user for request in requests if request.num_computed == 0}
        if len(waiting) < 2:
            return largest
        engine.step()
        service: Counter[str] = Counter()
        for request in requests:
            if request.num_computed > 0:
                service[request.user] += request.prompt_len + 2 * request.num_generated
        largest = max(largest, abs(service["flood"] - service["polite"]))


@pytest.mark.slow
def test_the_service_of_two_waiting_users_differs_at_most_by_the_papers_bound() -> None:
    """The bound of the paper's theorem: 2 max(w_p * longest prompt, w_q * tokens in a batch)."""
    in_a_batch = BATCH_SIZE * (LONGEST_PROMPT + LONGEST_OUTPUT)
    bound = 2 * max(LONGEST_PROMPT, 2 * in_a_batch)
    assert contest("vtc") <= bound
    assert contest("fcfs") > 5 * bound


def test_it_serves_all_users_under_pressure(symbolic_engine: Build) -> None:
    engine = symbolic_engine("vtc", device_blocks=12, host_blocks=6)
    params = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True)
    requests = [engine.add(str(i), [i] * (3 + i), params, user=f"user {i % 3}") for i in range(12)]
    while engine.has_work:
        engine.step()
    assert [request.num_generated for request in requests] == [10] * 12
    assert sum(request.preemptions for request in requests) > 0
