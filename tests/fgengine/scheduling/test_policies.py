"""Each policy's order on small cases worked out by hand."""

from __future__ import annotations

import pytest

from fgengine.cost import CostModel
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.mlfq import MLFQ, SkipJoinMLFQ
from fgengine.scheduling.policy import Policy, PolicyContext, make_policy, policy_class, policy_names

# A decode takes 1 s, a prefill 1 s a token: quanta are 1, 2, 4, 8 ... seconds.
COST = CostModel(step=0.5, prefill_token=1.0, decode_request=0.5, prefill_request=0.0)
CONTEXT = PolicyContext(COST, starvation_limit=100.0)


def make(id: str, prompt_len: int = 2, max_tokens: int = 10, arrival: float = 0.0) -> Request:
    return Request.new(id, [0] * prompt_len, SamplingParams(max_tokens=max_tokens), arrival)


def order(policy: Policy, now: float = 0.0) -> str:
    requests = list(policy.order(now))
    assert sorted(requests, key=policy.priority) == requests
    return "".join(request.id for request in requests)


def ran(policy: Policy, request: Request, seconds: float, now: float) -> None:
    """The request computed what it knew and got a token."""
    request.num_computed = request.num_known
    request.tokens.append(0)
    policy.on_step(request, seconds, now)


def test_fcfs_keeps_the_order_of_arrival_whatever_has_run() -> None:
    policy = make_policy("fcfs", CONTEXT)
    a, b, c = make("a", arrival=1), make("b", arrival=2), make("c", arrival=3)
    for request in (a, b, c):
        policy.add(request, request.arrival)
    ran(policy, b, 1.0, 4.0)
    assert order(policy) == "abc"
    policy.remove(a)
    assert order(policy) == "bc"


def test_srpt_runs_the_fewest_tokens_left_and_follows_progress() -> None:
    policy = make_policy("srpt", CONTEXT)
    a, b, c = make("a", max_tokens=5), make("b", max_tokens=3), make("c", max_tokens=3)
    for request in (a, b, c):
        policy.add(request, 0.0)
    assert order(policy) == "bca"
    for step in range(3):
        ran(policy, a, 1.0, step)
    assert order(policy) == "abc"


def test_mlfq_demotes_whoever_used_its_quantum_to_the_back() -> None:
    policy = MLFQ(CONTEXT)
    a, b = make("a"), make("b")
    policy.add(a, 0.0)
    policy.add(b, 0.0)
    assert policy.quanta[:4] == [1.0, 2.0, 4.0, 8.0]
    ran(policy, a, 0.6, 0.6)
    assert order(policy) == "ab"  # 0.6 of 1 s used
    ran(policy, a, 0.6, 1.2)
    assert (order(policy), policy.level_of(a)) == ("ba", 1)
    ran(policy, b, 1.0, 2.2)
    assert order(policy) == "ab"  # FIFO inside the second queue
    ran(policy, a, 1.9, 4.0)
    assert order(policy) == "ab"
    ran(policy, a, 0.1, 4.1)
    assert (order(policy), policy.level_of(a)) == ("ba", 2)
    assert policy.level_of(b) == 1


def test_a_new_job_overtakes_those_that_have_sunk() -> None:
    policy = MLFQ(CONTEXT)
    a = make("a")
    policy.add(a, 0.0)
    ran(policy, a, 5.0, 5.0)
    policy.add(make("b"), 5.0)
    assert order(policy) == "ba"


def test_skip_join_enters_the_highest_queue_that_holds_the_first_token_time() -> None:
    policy = SkipJoinMLFQ(CONTEXT)
    for id, prompt_len, level in (("a", 7, 3), ("b", 2, 2), ("c", 3, 2), ("d", 30, 5)):
        request = make(id, prompt_len)
        policy.add(request, 0.0)
        assert policy.level_of(request) == level, id
    assert order(policy) == "bcad"
    assert MLFQ(CONTEXT).entry_level(make("e", 30)) == 0


def test_the_papers_example_skip_join_spares_a_long_prompt_its_useless_stops() -> None:
    """Section 4.1: in plain MLFQ a long prompt is cut off in the first queues before its first token."""
    plain, skipping = MLFQ(CONTEXT), SkipJoinMLFQ(CONTEXT)
    for policy in (plain, skipping):
        long, short = make("l", prompt_len=7), make("s", prompt_len=1)
        policy.add(long, 0.0)
        policy.add(short, 0.0)
        first = next(iter(policy.order(0.0)))
        assert first.id == ("l" if policy is plain else "s")


def test_a_demoted_job_lands_where_its_next_iteration_fits() -> None:
    policy = MLFQ(CONTEXT)
    a = make("a", prompt_len=40)
    policy.add(a, 0.0)
    a.num_computed = 20  # a chunk; 20 tokens are left: 20.5 s
    policy.on_step(a, 20.5, 20.5)
    assert policy.level_of(a) == 5  # a quantum of 32 s, not the next queue's 2 s


def test_waiting_for_the_limit_promotes_to_the_first_queue_with_a_fresh_quantum() -> None:
    policy = MLFQ(PolicyContext(COST, starvation_limit=10.0))
    a, b = make("a"), make("b")
    policy.add(a, 0.0)
    ran(policy, a, 7.0, 7.0)
    policy.add(b, 7.0)
    ran(policy, b, 0.5, 16.9)
    assert order(policy, 16.9) == "ba"
    assert order(policy, 17.0) == "ba"  # promoted, behind b
    assert policy.level_of(a) == 0
    ran(policy, a, 0.9, 18.0)
    assert policy.level_of(a) == 0  # what it used before does not count
    ran(policy, a, 0.2, 18.2)
    assert policy.level_of(a) == 1


def test_a_job_that_never_ran_has_waited_since_it_arrived() -> None:
    policy = SkipJoinMLFQ(PolicyContext(COST, starvation_limit=10.0))
    late = make("a", prompt_len=7)
    policy.add(late, 1000.0)
    order(policy, 1009.0)
    assert policy.level_of(late) == 3


def test_a_policy_is_found_by_name_or_by_path_or_not_at_all() -> None:
    assert policy_class("sj-mlfq") is SkipJoinMLFQ
    assert policy_class("fgengine.scheduling.mlfq:MLFQ") is MLFQ
    assert policy_names()[:4] == ["static", "fcfs", "mlfq", "sj-mlfq"]
    with pytest.raises(ValueError, match="there are static, fcfs, mlfq, sj-mlfq"):
        policy_class("lifo")
    with pytest.raises(ValueError, match="not a subclass"):
        policy_class("fgengine.request:Request")
    with pytest.raises(ValueError, match="could not be loaded"):
        policy_class("fgengine.nothing:There")


def test_a_policy_that_predicts_says_so_when_there_is_no_profile() -> None:
    with pytest.raises(ValueError, match="fgbench profile"):
        make_policy("sj-mlfq", PolicyContext(None))
