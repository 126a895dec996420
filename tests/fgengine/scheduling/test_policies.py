"""Each policy's order on small cases computed by hand."""

from __future__ import annotations

import pytest

from fgengine.cost import CostModel
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.mlfq import BACKLOGS, MLFQ, ArtifactMLFQ, SkipJoinMLFQ
from fgengine.scheduling.policy import Policy, PolicyContext, make_policy, policy_class, policy_names

# A decode takes 1 s and a prefill 1 s per token, so the quanta are 1, 2, 4, 8 ... seconds.
COST = CostModel(step=0.5, prefill_token=1.0, decode_request=0.5, prefill_request=0.0)
CONTEXT = PolicyContext(COST, starvation_limit=100.0)


class StepChargedMLFQ(ArtifactMLFQ):
    """MLFQ without skip-join that charges the step's time, which the test sets."""

    entry_level = MLFQ.entry_level


def make(id: str, prompt_len: int = 2, max_tokens: int = 10, arrival: float = 0.0) -> Request:
    return Request.new(id, [0] * prompt_len, SamplingParams(max_tokens=max_tokens), arrival)


def order(policy: Policy, now: float = 0.0) -> str:
    requests = list(policy.order(now))
    assert sorted(requests, key=policy.priority) == requests
    return "".join(request.id for request in requests)


def ran(policy: Policy, request: Request, seconds: float, now: float) -> None:
    """Let the request compute its pending tokens and get a new token."""
    request.num_computed = request.num_known
    request.tokens.append(0)
    policy.on_step(request, seconds, now)


def test_fcfs_keeps_the_order_of_arrival_regardless_of_progress() -> None:
    policy = make_policy("fcfs", CONTEXT)
    a, b, c = make("a", arrival=1), make("b", arrival=2), make("c", arrival=3)
    for request in (a, b, c):
        policy.add(request, request.arrival)
    ran(policy, b, 1.0, 4.0)
    assert order(policy) == "abc"
    policy.remove(a)
    assert order(policy) == "bc"


def test_srpt_runs_the_request_with_the_fewest_tokens_left() -> None:
    policy = make_policy("srpt", CONTEXT)
    a, b, c = make("a", max_tokens=5), make("b", max_tokens=3), make("c", max_tokens=3)
    for request in (a, b, c):
        policy.add(request, 0.0)
    assert order(policy) == "bca"
    for step in range(3):
        ran(policy, a, 1.0, step)
    assert order(policy) == "abc"


def test_a_job_that_used_its_quantum_moves_to_the_back_of_the_next_queue() -> None:
    policy = StepChargedMLFQ(CONTEXT)
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


def test_a_decode_is_charged_a_full_step_of_decodes_regardless_of_other_requests() -> None:
    policy = MLFQ(PolicyContext(COST, max_batch_size=3))  # a decode counts 0.5 + 3 x 0.5 s
    short, other = make("s", prompt_len=1, max_tokens=99), make("o")
    policy.add(short, 0.0)
    policy.add(other, 0.0)
    ran(policy, short, 60.0, 60.0)  # a long prompt ran in the same step; only the own token, 2 s, is charged
    assert policy.level_of(short) == 1
    ran(policy, short, 60.0, 120.0)  # 2 s again, the quantum of the second queue
    assert policy.level_of(short) == 2
    ran(policy, short, 0.1, 120.1)
    assert policy.level_of(short) == 2
    ran(policy, short, 0.1, 120.2)
    assert policy.level_of(short) == 3


def test_a_prefill_is_charged_its_time_alone_on_the_machine() -> None:
    policy = SkipJoinMLFQ(CONTEXT)
    long = make("l", prompt_len=7)
    policy.add(long, 0.0)
    assert policy.level_of(long) == 3  # 0.5 + 7 x 1 s fits into 8 s
    ran(policy, long, 60.0, 60.0)
    assert policy.level_of(long) == 3  # 7.5 s of the quantum are used
    ran(policy, long, 60.0, 120.0)
    assert policy.level_of(long) == 4


def test_recomputed_tokens_are_charged_as_a_prefill() -> None:
    policy = MLFQ(PolicyContext(COST, max_batch_size=1))
    job = make("a", prompt_len=7)
    policy.add(job, 0.0)
    policy.on_start(job)
    for _ in range(3):
        ran(policy, job, 0.1, 0.0)
    level = policy.level_of(job)
    job.num_computed = 0  # its KV is discarded
    policy.on_start(job)
    ran(policy, job, 0.1, 0.0)  # 10 tokens: 10.5 s
    assert policy.level_of(job) > level


def test_several_steps_in_one_report_are_all_charged() -> None:
    once, often = (MLFQ(PolicyContext(COST, max_batch_size=1)) for _ in range(2))
    jobs = [make("a", prompt_len=1, max_tokens=99) for _ in range(2)]
    for policy, job in zip((once, often), jobs, strict=True):
        policy.add(job, 0.0)
        ran(policy, job, 1.0, 1.0)
        assert policy.level_of(job) == 1
    for _ in range(2):
        ran(often, jobs[1], 1.0, 3.0)
    jobs[0].num_computed += 2
    jobs[0].tokens.extend([0, 0])
    once.on_step(jobs[0], 2.0, 3.0)
    assert once.level_of(jobs[0]) == often.level_of(jobs[1]) == 2


def test_the_promotion_limit_follows_the_backlog_and_is_never_below_the_starvation_limit() -> None:
    context = PolicyContext(COST, starvation_limit=10.0, max_batch_size=2)
    policy, artifact = SkipJoinMLFQ(context), ArtifactMLFQ(context)
    for number in range(21):
        for kind in (policy, artifact):
            kind.add(make(str(number), prompt_len=3), 0.0)
    assert policy.promotion_limit == 10.0  # no request has finished, so the mean work is unknown
    done = make("0", prompt_len=3)
    done.tokens.extend([0] * 4)
    done.finish("length", 1.0)
    for kind in (policy, artifact):
        kind.remove(done)
    # A prefill of 3 s, 3 decodes of 0.5 s, and half of the constant cost of 4 steps (a batch of two).
    share = 3.0 + 3 * 0.5 + 4 * 0.5 / 2
    assert policy.promotion_limit == pytest.approx(BACKLOGS * 20 * share)
    assert artifact.promotion_limit == 10.0
    for number in range(1, 21):
        request = make(str(number))
        request.finish("abort", 2.0)
        policy.remove(request)
    assert policy.promotion_limit == 10.0


def test_a_new_job_overtakes_demoted_jobs() -> None:
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


def test_skip_join_avoids_preemptions_of_a_long_prompt_before_its_first_token() -> None:
    """FastServe, section 4.1: in plain MLFQ a long prompt is preempted in the first queues."""
    plain, skipping = MLFQ(CONTEXT), SkipJoinMLFQ(CONTEXT)
    for policy in (plain, skipping):
        long, short = make("l", prompt_len=7), make("s", prompt_len=1)
        policy.add(long, 0.0)
        policy.add(short, 0.0)
        first = next(iter(policy.order(0.0)))
        assert first.id == ("l" if policy is plain else "s")


def test_a_demoted_job_joins_the_queue_that_holds_its_next_iteration() -> None:
    policy = MLFQ(CONTEXT)
    a = make("a", prompt_len=40)
    policy.add(a, 0.0)
    a.num_computed = 20  # a chunk; the other 20 tokens take 20.5 s
    policy.on_step(a, 20.5, 20.5)
    assert policy.level_of(a) == 5  # a quantum of 32 s; the next queue has 2 s


def test_waiting_for_the_limit_promotes_to_the_first_queue_with_a_fresh_quantum() -> None:
    policy = StepChargedMLFQ(PolicyContext(COST, starvation_limit=10.0))
    a, b = make("a"), make("b")
    policy.add(a, 0.0)
    ran(policy, a, 7.0, 7.0)
    policy.add(b, 7.0)
    ran(policy, b, 0.5, 16.9)
    assert order(policy, 16.9) == "ba"
    assert order(policy, 17.0) == "ba"  # a is promoted to the back, after b
    assert policy.level_of(a) == 0
    ran(policy, a, 0.9, 18.0)
    assert policy.level_of(a) == 0  # time used before the promotion does not count
    ran(policy, a, 0.2, 18.2)
    assert policy.level_of(a) == 1


def test_a_job_that_never_ran_has_waited_since_it_arrived() -> None:
    policy = SkipJoinMLFQ(PolicyContext(COST, starvation_limit=10.0))
    late = make("a", prompt_len=7)
    policy.add(late, 1000.0)
    order(policy, 1009.0)
    assert policy.level_of(late) == 3


def test_a_policy_is_found_by_name_or_path_else_an_error_is_raised() -> None:
    assert policy_class("sj-mlfq") is SkipJoinMLFQ
    assert policy_class("fgengine.scheduling.mlfq:MLFQ") is MLFQ
    assert policy_names()[:4] == ["static", "fcfs", "mlfq", "sj-mlfq"]
    with pytest.raises(ValueError, match="there are static, fcfs, mlfq, sj-mlfq"):
        policy_class("lifo")
    with pytest.raises(ValueError, match="not a subclass"):
        policy_class("fgengine.request:Request")
    with pytest.raises(ValueError, match="could not be loaded"):
        policy_class("fgengine.nothing:There")


def test_a_policy_that_needs_a_cost_model_asks_for_a_profile() -> None:
    with pytest.raises(ValueError, match="fgbench profile"):
        make_policy("sj-mlfq", PolicyContext(None))
