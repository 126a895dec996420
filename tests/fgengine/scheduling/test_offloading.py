"""The offloading modes when memory is short, and chunked prefill, on cases computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest

from fgengine.cost import CostModel
from fgengine.engine import Engine
from fgengine.kv.manager import Where
from fgengine.kv.transfer import Transfer
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.mlfq import MLFQ, ArtifactMLFQ
from fgengine.scheduling.policy import Policy, PolicyContext, Priority, policy_names

Build = Callable[..., Engine]
MODES = ["none", "reactive", "proactive", "blocking", "recompute", "auto"]


def params(max_tokens: int = 8) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def batch(engine: Engine) -> list[tuple[str, int, int]]:
    """The last step's items as (id, start, tokens)."""
    return [(i.request.id, i.start, i.num_tokens) for i in engine.runner.plans[-1].items]  # type: ignore[attr-defined]


class ByHand(Policy):
    """A policy whose order and expected waits are set by the test."""

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self.requests: list[Request] = []
        self.waits: dict[str, float] = {}

    def add(self, request: Request, now: float) -> None:
        self.requests.append(request)

    def remove(self, request: Request) -> None:
        self.requests.remove(request)

    def order(self, now: float) -> Iterator[Request]:
        return iter(self.requests)

    def priority(self, request: Request) -> Priority:
        return (self.requests.index(request),)

    def expected_wait(self, request: Request, now: float) -> float:
        return self.waits.get(request.id, 0.0)

    def arrange(self, ids: str) -> None:
        self.requests.sort(key=lambda request: ids.index(request.id))


def by_hand(engine: Engine) -> ByHand:
    policy = engine.scheduler.policy.inner
    assert isinstance(policy, ByHand)
    return policy


def fill(engine: Engine, prompts: dict[str, int], max_tokens: int) -> None:
    """Compute these prompts one after another in an engine whose batch holds one request."""
    for id, length in prompts.items():
        engine.add(id, [1] * length, params(max_tokens))
        by_hand(engine).arrange(id + "".join(other for other in prompts if other != id))
        engine.step()


# -- none ------------------------------------------------------------------------------------------------


def test_none_reserves_the_maximum_length_at_admission(symbolic_engine: Build) -> None:
    engine = symbolic_engine(device_blocks=6, offloading="none")
    for id in "abc":  # 4 + 8 tokens; the last one needs no KV: 3 blocks
        engine.add(id, [1] * 4, params(8))
    engine.step()
    assert batch(engine) == [("a", 0, 4), ("b", 0, 4)]
    kv = engine.scheduler.kv
    assert [kv.num_blocks(id) for id in "abc"] == [3, 3, 0]
    while engine.has_work:
        engine.step()
        assert [len(kv.table(id)) for id in "ab" if kv.where(id) is Where.DEVICE] in ([3, 3], [])
    assert engine.stats()["finished"] == 3


@pytest.mark.parametrize("policy", policy_names())
def test_none_never_evicts_or_copies(policy: str, symbolic_engine: Build) -> None:
    engine = symbolic_engine(policy, device_blocks=15, max_batch_size=3, offloading="none")
    computed: dict[str, int] = {}
    waited = False
    for i in range(12):
        engine.add(str(i), [i] * (1 + 7 * i % 30), params(1 + 5 * i % 20))
        engine.step()
    while engine.has_work:
        engine.step()
        for id, start, count in batch(engine):
            assert start == computed.get(id, start)
            computed[id] = start + count
        running, unfinished = engine.scheduler.num_running, len(engine.scheduler.requests)
        waited = waited or running < min(3, unfinished)
    stats = engine.stats()
    assert waited, "memory was never short"
    assert (stats["offloaded_blocks"], stats["uploaded_blocks"], stats["recomputed_tokens"]) == (0, 0, 0)
    assert stats["finished"] == 12


# -- recompute and auto ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["fcfs", "mlfq", "sj-mlfq", "srpt"])
def test_recompute_copies_nothing_even_with_a_host_pool(policy: str, symbolic_engine: Build) -> None:
    engine = symbolic_engine(policy, device_blocks=10, host_blocks=64, offloading="recompute")
    requests = [engine.add(str(i), [i] * (5 + i), params(12)) for i in range(8)]
    while engine.has_work:
        engine.step()
        assert engine.scheduler.kv.host.num_free == 64
    stats = engine.stats()
    assert stats["offloaded_blocks"] == stats["uploaded_blocks"] == 0
    assert stats["recomputed_tokens"] > 0
    assert all(request.bytes_moved == 0 for request in requests)


SLOW_COPIES = CostModel(step=0.01, prefill_token=0.0005, prefill_pair=0.0001, copy_bytes_per_second=5e5)
"""Offload and upload of a block of 1,000 bytes take 4 ms. For 8 tokens (2 blocks) copies take 8 ms, and
recompute 8 x 0.5 + 36 x 0.1 = 7.6 ms. For 16 tokens (4 blocks) copies take 16 ms, and recompute 16 x 0.5 +
136 x 0.1 = 21.6 ms."""


@pytest.mark.parametrize(("tokens", "swapped"), [(8, False), (16, True)])
def test_auto_recomputes_short_requests_and_offloads_long_ones(
    tokens: int, swapped: bool, symbolic_engine: Build
) -> None:
    engine = symbolic_engine(
        ByHand, device_blocks=6, max_batch_size=1, offloading="auto", cost=SLOW_COPIES, eager_copies=True
    )
    fill(engine, {"v": tokens}, 4)
    engine.add("n", [2] * 21, params(4))  # all six blocks
    by_hand(engine).arrange("nv")
    engine.step()
    stats = engine.stats()
    blocks = tokens // 4
    assert stats["offloaded_blocks"] == (blocks if swapped else 0)
    assert stats["recomputed_tokens"] == (0 if swapped else tokens)
    while engine.has_work:
        engine.step()
    assert engine.stats()["uploaded_blocks"] == (blocks if swapped else 0)
    assert engine.stats()["finished"] == 2


@pytest.mark.parametrize("mode", ["reactive", "proactive", "auto"])
@pytest.mark.parametrize("host_blocks", [0, 2])
def test_with_a_full_host_pool_no_kv_is_discarded_for_a_start(
    mode: str, host_blocks: int, symbolic_engine: Build
) -> None:
    """Under auto a copy would be faster. A full host pool is no reason to recompute instead."""
    engine = symbolic_engine(ByHand, device_blocks=6, host_blocks=host_blocks, offloading=mode)
    engine.add("f", [1] * 9, params(3))
    low = engine.add("l", [1] * 9, params(3))
    engine.step()
    engine.add("n", [1] * 9, params(3))  # 3 blocks, which only the eviction of l could free
    by_hand(engine).arrange("fnl")
    engine.step()
    assert batch(engine) == [("f", 9, 1), ("l", 9, 1)]
    assert (low.num_computed, engine.stats()["recomputed_tokens"]) == (10, 0)


def test_auto_discards_kv_that_is_faster_to_recompute_for_any_request(symbolic_engine: Build) -> None:
    never_copy = CostModel(step=0.01, prefill_token=0.0005, copy_bytes_per_second=1.0)
    engine = symbolic_engine(ByHand, device_blocks=10, offloading="auto", cost=never_copy)
    engine.add("f", [1] * 9, params(3))
    low = engine.add("l", [1] * 9, params(3))
    engine.step()
    engine.add("n", [1] * 21, params(3))  # 6 blocks, of which 4 are free
    by_hand(engine).arrange("fnl")
    engine.step()
    assert batch(engine) == [("f", 9, 1), ("n", 0, 21)]
    assert (low.num_computed, engine.stats()["offloaded_blocks"]) == (0, 0)


# -- proactive -------------------------------------------------------------------------------------------


def test_enst_equals_values_computed_by_hand() -> None:
    """FastServe, section 5: T_execute sums the quanta of the jobs in higher queues and of earlier jobs."""
    cost = CostModel(step=0.5, decode_request=0.5)  # quanta of 1, 2, 4, 8 ... seconds
    policy = ArtifactMLFQ(PolicyContext(cost, starvation_limit=10.0, max_batch_size=2))
    jobs = {id: Request.new(id, [0], params(), 0.0) for id in "abcde"}
    for request in jobs.values():
        policy.add(request, 0.0)
    for id, quanta in {"c": [1.0], "d": [1.0, 2.0], "e": [1.0, 2.0]}.items():
        for seconds in quanta:
            jobs[id].num_computed = jobs[id].num_known
            jobs[id].tokens.append(0)
            policy.on_step(jobs[id], seconds, 0.0)
    assert [policy.level_of(request) for request in jobs.values()] == [0, 0, 1, 2, 2]
    # d: a and b may use 1 + 2 s each in higher queues, c 2 s; two run at a time. e: also d's 4 s.
    expected = {"a": 0.0, "b": 0.5, "c": 1.0, "d": (2 * 3 + 2) / 2, "e": (2 * 3 + 2 + 4) / 2}
    assert {id: policy.expected_wait(request, 0.0) for id, request in jobs.items()} == expected
    # At 7 s, d and e are promoted in 3 s and c in 9 s; jobs in the first queue cannot be promoted.
    policy.on_step(jobs["c"], 0.1, 6.0)
    assert [policy.expected_wait(jobs[id], 7.0) for id in "abcde"] == [0.0, 0.5, 1.0, 3.0, 3.0]


@pytest.mark.parametrize("mode", ["reactive", "proactive"])
def test_proactive_evicts_a_request_that_is_promoted_soon_last(
    mode: str, symbolic_engine: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """y is last in the policy's order, but is promoted in 40 ms. x waits for 7 quanta of z."""
    engine = symbolic_engine(
        "mlfq", device_blocks=12, max_batch_size=1, offloading=mode, starvation_limit=1.0, eager_copies=True
    )
    policy = engine.scheduler.policy.inner
    assert isinstance(policy, MLFQ)
    first_quantum = policy.quanta[0]
    y = engine.add("y", [1] * 4, params(40))
    while policy.level_of(y) < 4:
        engine.step()
    assert y.last_ran_at is not None
    x = engine.add("x", [2] * 4, params(40))
    while policy.level_of(x) < 3:
        engine.step()
    engine.clock.advance_to(y.last_ran_at + 0.96)  # type: ignore[attr-defined]
    engine.add("z", [3] * 24, params(2))  # 6 blocks, of which 4 are free
    now = engine.clock.now()
    assert policy.expected_wait(y, now) == pytest.approx(0.04)
    assert policy.expected_wait(x, now) == pytest.approx(7 * first_quantum)
    assert policy.priority(x) < policy.priority(y)
    kv = engine.scheduler.kv
    assert [kv.num_blocks(id) for id in "xyz"] == [3, 5, 0]
    submitted: list[Transfer] = []
    submit = engine.copies.submit
    monkeypatch.setattr(
        engine.copies, "submit", lambda transfer: (submitted.append(transfer), submit(transfer))
    )
    engine.step()
    assert [t.request_id for t in submitted] == (["x"] if mode == "proactive" else ["y"])
    while batch(engine) != [("z", 0, 24)]:
        engine.step()


def test_proactive_evicts_the_longest_wait_and_uploads_the_next_requests_early(
    symbolic_engine: Build,
) -> None:
    engine = symbolic_engine(
        ByHand, device_blocks=20, max_batch_size=1, offloading="proactive", eager_copies=True
    )
    policy, kv = by_hand(engine), engine.scheduler.kv
    fill(engine, {"a": 15, "b": 15, "c": 15}, 5)  # 4 blocks each
    policy.waits = {"a": 3.0, "b": 1.0, "c": 2.0}
    engine.add("big", [1] * 60, params(1))
    policy.requests.insert(0, policy.requests.pop())
    engine.step()
    # The 8 blocks of a and c and the 8 free blocks are enough for big's 15. A quarter of the pool should also
    # be free for arrivals, because big has not started; but only b could free it, and b is in the batch.
    assert engine.stats()["offloaded_blocks"] == 8
    while "big" in engine.scheduler.requests:
        engine.step()
    engine.add("d", [1] * 13, params(3))
    policy.arrange("dabc")
    engine.step()
    # A step considers two batches of the policy's order: a is next, and 4 blocks are free for it.
    uploads = engine.runner.plans[-1].uploads  # type: ignore[attr-defined]
    assert [transfer.request_id for transfer in uploads] == ["a"]
    assert kv.device.num_free == 8


def test_reactive_offloads_no_more_than_needed(symbolic_engine: Build) -> None:
    engine = symbolic_engine(ByHand, device_blocks=20, max_batch_size=1, offloading="reactive")
    fill(engine, {"a": 15, "b": 15, "c": 15}, 5)
    engine.add("big", [1] * 60, params(1))
    policy = by_hand(engine)
    policy.requests.sort(key=lambda request: ["big", "a", "b", "c"].index(request.id))
    engine.step()
    kv = engine.scheduler.kv
    assert engine.stats()["offloaded_blocks"] == 8
    assert kv.where("a") is Where.DEVICE


# -- the smallest pools ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("host_blocks", [0, 1, 50])
@pytest.mark.parametrize("policy", policy_names())
@pytest.mark.slow
def test_a_device_pool_for_one_request_serves_all_requests(
    policy: str, host_blocks: int, mode: str, symbolic_engine: Build
) -> None:
    for chunked in (False, True):
        engine = symbolic_engine(
            policy,
            device_blocks=4,
            host_blocks=host_blocks,
            max_tokens_per_batch=6,
            offloading=mode,
            chunked_prefill=chunked,
            starvation_limit=0.1,
        )
        done = engine.generate([[i] * 9 for i in range(5)], params())
        while engine.has_work:
            engine.step()
        stats = engine.stats()
        assert [request.num_generated for request in done] == [8] * 5
        assert (stats["free_device_blocks"], stats["free_host_blocks"]) == (4, host_blocks)
        if host_blocks == 0:
            assert stats["offloaded_blocks"] == 0


def test_fcfs_evicts_the_newest_request(symbolic_engine: Build) -> None:
    engine = symbolic_engine("fcfs", device_blocks=6, eager_copies=True)
    for id in "abc":
        engine.add(id, [1] * 8, params(8))  # two full blocks each: all need a third one at the same time
    engine.step()
    engine.step()
    kv = engine.scheduler.kv
    assert [id for id in "abc" if kv.where(id) is Where.DEVICE] == ["a", "b"]


def test_srpt_evicts_the_longest_request(symbolic_engine: Build) -> None:
    engine = symbolic_engine("srpt", device_blocks=6, eager_copies=True)
    for id, max_tokens in {"a": 16, "b": 4, "c": 8}.items():
        engine.add(id, [1] * 8, params(max_tokens))
    engine.step()
    engine.step()
    kv = engine.scheduler.kv
    assert [id for id in "abc" if kv.where(id) is Where.DEVICE] == ["b", "c"]


# -- chunked prefill -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt_first", [False, True])
def test_chunked_prefill_delays_no_decode(prompt_first: bool, symbolic_engine: Build) -> None:
    engine = symbolic_engine(ByHand, max_tokens_per_batch=8, chunked_prefill=True)
    for id in "abc":
        engine.add(id, [1] * 2, params(30))
    engine.step()
    long = engine.add("p", [1] * 62, params(2))
    if prompt_first:
        by_hand(engine).arrange("pabc")
    steps = 0
    while long.num_generated == 0:
        engine.step()
        steps += 1
        items = {id: count for id, _, count in batch(engine)}
        assert {id: items[id] for id in "abc"} == {"a": 1, "b": 1, "c": 1}
        assert sum(items.values()) <= 8
    assert steps == math.ceil(62 / 5)  # the prompt got all tokens that the decodes left


def test_chunked_prefill_gives_a_single_prompt_all_remaining_tokens(symbolic_engine: Build) -> None:
    engine = symbolic_engine(max_batch_size=8, max_tokens_per_batch=4, chunked_prefill=True)
    engine.add("d", [1], params(50))
    engine.step()
    prompt = engine.add("p", [1] * 12, params(2))
    seen = []
    while prompt.num_generated == 0:
        engine.step()
        seen.append(batch(engine)[1])
    assert seen == [("p", 0, 3), ("p", 3, 3), ("p", 6, 3), ("p", 9, 3)]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("policy", policy_names())
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_a_token_budget_smaller_than_the_batch_is_respected_and_used(
    budget: int, policy: str, chunked: bool, symbolic_engine: Build
) -> None:
    engine = symbolic_engine(
        policy, max_batch_size=8, max_tokens_per_batch=budget, chunked_prefill=chunked, starvation_limit=0.2
    )
    for i in range(6):
        engine.add(str(i), [i] * (1 + 4 * i), params(5))
    tokens = 0
    while engine.has_work:
        engine.step()
        plan = engine.runner.plans[-1]  # type: ignore[attr-defined]
        assert 1 <= plan.num_tokens <= budget
        tokens += plan.num_tokens
    assert engine.stats()["finished"] == 6
    assert tokens == sum(1 + 4 * i + 4 for i in range(6))  # no token was computed twice
