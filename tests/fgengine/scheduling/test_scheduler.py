"""Batches, token budgets and short memory on small cases computed by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from fgengine.engine import Engine, RequestRefused
from fgengine.kv.manager import Where
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import Policy, PolicyContext, Priority

Build = Callable[..., Engine]


def params(max_tokens: int = 8) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)


def batch(engine: Engine) -> list[tuple[str, int, int]]:
    """The last step's items as (id, start, tokens)."""
    return [(i.request.id, i.start, i.num_tokens) for i in engine.runner.plans[-1].items]  # type: ignore[attr-defined]


class Chosen(Policy):
    """A policy whose order the test sets."""

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self.requests: list[Request] = []

    def add(self, request: Request, now: float) -> None:
        self.requests.append(request)

    def remove(self, request: Request) -> None:
        self.requests.remove(request)

    def order(self, now: float) -> Iterator[Request]:
        return iter(self.requests)

    def priority(self, request: Request) -> Priority:
        return (self.requests.index(request),)

    def put_first(self, id: str) -> None:
        self.requests.sort(key=lambda request: request.id != id)


def test_prefills_and_decodes_share_a_step(symbolic_engine: Build) -> None:
    engine = symbolic_engine()
    engine.add("a", [1] * 5, params())
    engine.step()
    engine.add("b", [2] * 7, params())
    engine.step()
    assert batch(engine) == [("a", 5, 1), ("b", 0, 7)]


def test_a_batch_holds_at_most_its_size(symbolic_engine: Build) -> None:
    engine = symbolic_engine(max_batch_size=2)
    for id in "abc":
        engine.add(id, [1, 2], params())
    engine.step()
    assert [id for id, _, _ in batch(engine)] == ["a", "b"]


def test_a_prompt_that_does_not_fit_waits_and_is_not_overtaken(symbolic_engine: Build) -> None:
    engine = symbolic_engine(max_tokens_per_batch=10)
    engine.add("a", [1] * 8, params())
    engine.add("b", [1] * 8, params())
    engine.add("c", [1] * 2, params())
    engine.step()
    assert batch(engine) == [("a", 0, 8)]
    engine.step()
    assert batch(engine) == [("a", 8, 1), ("b", 0, 8)]
    engine.step()
    assert batch(engine) == [("a", 9, 1), ("b", 8, 1), ("c", 0, 2)]


def test_a_prompt_longer_than_a_batch_is_computed_in_pieces(symbolic_engine: Build) -> None:
    engine = symbolic_engine(max_tokens_per_batch=10)
    request = engine.add("a", [1] * 25, params(2))
    seen = []
    while engine.has_work:
        engine.step()
        seen += batch(engine)
    assert seen == [("a", 0, 10), ("a", 10, 10), ("a", 20, 5), ("a", 25, 1)]
    assert request.num_generated == 2


def test_a_request_that_can_never_fit_is_refused_with_the_reason(symbolic_engine: Build) -> None:
    engine = symbolic_engine(device_blocks=4, block_size=4, max_model_len=100)
    for prompt, reason in (
        ([1] * 93, r"make 101; the limit is 100 \(max_model_len\)"),
        ([1] * 10, "need 5 KV blocks; the device pool has 4"),
        ([2000], "outside 0"),
        ([], "at least one token"),
    ):
        with pytest.raises(RequestRefused, match=reason) as error:
            engine.add("a", prompt, params())
        assert error.value.field == "prompt"
    engine.add("a", [1] * 9, params())  # 17 tokens, the last of which needs no KV
    with pytest.raises(RequestRefused, match="running already") as error:
        engine.add("a", [1], params())
    assert error.value.field is None


def test_a_pool_for_one_request_serves_all_requests(symbolic_engine: Build) -> None:
    for host in (0, 1, 50):
        engine = symbolic_engine(device_blocks=4, host_blocks=host, block_size=4)
        done = engine.generate([[i] * 9 for i in range(5)], params())
        assert [request.finish_reason for request in done] == ["length"] * 5
        assert engine.stats()["free_device_blocks"] == 4


def test_the_last_request_of_the_order_is_evicted(symbolic_engine: Build) -> None:
    engine = symbolic_engine(Chosen, device_blocks=6, max_batch_size=1, eager_copies=True)
    policy = engine.scheduler.policy.inner
    assert isinstance(policy, Chosen)
    a, _, c = (engine.add(id, [1] * 7, params()) for id in "abc")
    for id in "abc":  # two blocks each: the pool is full
        policy.put_first(id)
        engine.step()
    engine.add("d", [1] * 4, params())
    policy.requests.sort(key=lambda request: "dbca".index(request.id))
    engine.step()
    kv = engine.scheduler.kv
    assert (kv.where(a.id), kv.where(c.id)) == (Where.OFFLOADING, Where.DEVICE)
    assert (a.phase, c.phase) == ("queued", "queued")
    assert batch(engine) == [("b", 7, 1)]  # b needs no block, so it runs while blocks for d are freed
    engine.step()
    assert batch(engine) == [("d", 0, 4)]


def test_blocks_being_freed_are_reserved_for_the_request_that_waits_for_them(
    symbolic_engine: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = symbolic_engine(Chosen, device_blocks=6, max_batch_size=3)
    policy = engine.scheduler.policy.inner
    assert isinstance(policy, Chosen)
    monkeypatch.setattr(engine.copies, "wait", list)
    monkeypatch.setattr(engine.copies, "done", list)
    engine.add("a", [1] * 15, params(2))
    engine.step()  # 4 blocks; 2 are free
    engine.add("big", [1] * 18, params(2))  # 5 blocks: a must be offloaded, which takes some time
    engine.add("small", [1] * 5, params(2))  # 2 blocks
    engine.add("tiny", [1] * 2, params(2))  # 1 block: the only one that big does not need
    policy.requests.sort(key=lambda request: ["big", "small", "tiny", "a"].index(request.id))
    plans = len(engine.runner.plans)  # type: ignore[attr-defined]
    engine.step()
    assert len(engine.runner.plans) == plans, "small took what big waits for"  # type: ignore[attr-defined]
    policy.requests.sort(key=lambda request: ["big", "tiny", "small", "a"].index(request.id))
    engine.step()
    assert batch(engine) == [("tiny", 0, 2)]
    monkeypatch.undo()
    while ("big", 0, 18) not in batch(engine):
        engine.step()


def test_free_blocks_are_reserved_for_the_first_request_that_needs_more(symbolic_engine: Build) -> None:
    engine = symbolic_engine(Chosen, device_blocks=6, max_batch_size=3)
    policy = engine.scheduler.policy.inner
    assert isinstance(policy, Chosen)
    engine.add("first", [1] * 9, params(3))  # 3 blocks; it needs no more
    engine.add("low", [1] * 8, params(3))  # 2 full blocks: its next token needs a third one
    engine.step()
    engine.add("next", [1] * 14, params(2))  # 4 blocks: even without low there are only 3
    engine.add("small", [1], params(2))  # 1 block, which is free
    policy.requests.sort(key=lambda request: ["first", "next", "low", "small"].index(request.id))
    engine.step()
    assert batch(engine) == [("first", 9, 1), ("low", 8, 1)]  # started requests continue, and no other starts


def test_decodes_that_need_no_block_continue_while_the_first_request_waits(symbolic_engine: Build) -> None:
    engine = symbolic_engine(device_blocks=6, host_blocks=0, block_size=4)
    engine.add("a", [1] * 8, params(8))
    engine.step()
    engine.add("b", [1] * 20, params(2))  # 5 blocks, of which 3 are free
    engine.step()
    assert batch(engine) == [("a", 8, 1)]


def test_with_a_full_host_pool_kv_is_discarded_for_a_next_token(symbolic_engine: Build) -> None:
    engine = symbolic_engine(device_blocks=4, host_blocks=1, max_batch_size=2)
    a = engine.add("a", [1] * 8, params())
    b = engine.add("b", [1] * 8, params())
    engine.step()
    engine.step()  # both need a third block: those of b are discarded, as the host pool is too small
    assert batch(engine) == [("a", 8, 1)]
    assert (b.num_computed, b.num_known) == (0, 9)
    assert engine.stats()["recomputed_tokens"] == 8
    while engine.has_work:
        engine.step()
    assert (a.num_generated, b.num_generated) == (8, 8)
    assert ("b", 0, 9) in [
        (i.request.id, i.start, i.num_tokens)
        for plan in engine.runner.plans  # type: ignore[attr-defined]
        for i in plan.items
    ]


def test_abort_frees_from_every_state(symbolic_engine: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = symbolic_engine(Chosen, device_blocks=6, max_batch_size=1)
    policy = engine.scheduler.policy.inner
    assert isinstance(policy, Chosen)
    for id in "abc":
        engine.add(id, [1] * 15, params())
    engine.step()  # a has run
    policy.put_first("b")
    with monkeypatch.context() as patched:
        patched.setattr(engine.copies, "wait", list)
        engine.step()  # the offload of a, for b, begins
    assert engine.stats()["transfers_in_flight"] == 1
    for id in "abc":
        assert engine.abort(id)
        assert not engine.abort(id)
    engine.scheduler.kv.check()
    while engine.has_work:  # no request is left, but a copy in flight holds blocks
        engine.step()
    stats = engine.stats()
    assert (stats["free_device_blocks"], stats["free_host_blocks"], stats["aborted"]) == (6, 64, 3)


def test_eos_and_stop_tokens_end_a_request(symbolic_engine: Build) -> None:
    engine = symbolic_engine(eos=frozenset(range(1009)))
    (request,) = engine.generate([[1, 2]], SamplingParams(max_tokens=5, temperature=0.0))
    assert (request.finish_reason, request.num_generated) == ("stop", 1)
    (request,) = engine.generate([[1, 2]], params(5))
    assert (request.finish_reason, request.num_generated) == ("length", 5)
    third = request.tokens[4]
    (request,) = engine.generate(
        [[1, 2]], SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True, stop_token_ids=(third,))
    )
    assert request.finish_reason == "stop"
    assert request.tokens[-1] == third


def test_a_requests_seconds_sum_to_its_time_in_the_engine(symbolic_engine: Build) -> None:
    engine = symbolic_engine("mlfq", device_blocks=12, host_blocks=10, starvation_limit=0.3)
    requests = [engine.add(str(i), [i] * (5 + i), params(12)) for i in range(8)]
    while engine.has_work:
        engine.step()
    for request in requests:
        assert request.last_ran_at is not None
        total = sum(request.seconds.values())
        assert total == pytest.approx(request.last_ran_at - request.arrival)
        assert request.seconds["decode"] > 0
    assert sum(request.preemptions for request in requests) == engine.stats()["preemptions"] > 0


def test_no_kv_is_discarded_for_a_start(symbolic_engine: Build) -> None:
    engine = symbolic_engine(Chosen, device_blocks=6, host_blocks=0, max_batch_size=3)
    policy = engine.scheduler.policy.inner
    assert isinstance(policy, Chosen)
    engine.add("first", [1] * 9, params(3))
    low = engine.add("low", [1] * 9, params(3))
    engine.step()
    engine.add("new", [1] * 9, params(3))  # 3 blocks: only by evicting low, and the host pool is empty
    policy.requests.sort(key=lambda request: ["first", "new", "low"].index(request.id))
    engine.step()
    assert batch(engine) == [("first", 9, 1), ("low", 9, 1)]
    policy.put_first("new")
    engine.step()
    assert batch(engine) == [("first", 10, 1), ("low", 10, 1)]
    assert low.num_computed == 11


def test_a_partly_computed_prompt_continues_while_the_first_request_waits_for_blocks(
    symbolic_engine: Build,
) -> None:
    """Otherwise, without offloading, the first request would wait forever for the blocks of the second."""
    engine = symbolic_engine(
        Chosen, device_blocks=6, max_batch_size=1, max_tokens_per_batch=4, offloading="none"
    )
    policy = engine.scheduler.policy.inner
    assert isinstance(policy, Chosen)
    engine.add("half", [1] * 12, params(4))  # 4 blocks for its maximum length, reserved at the start
    engine.step()
    engine.add("first", [1] * 12, params(4))
    policy.put_first("first")
    engine.step()
    assert batch(engine) == [("half", 4, 4)]
    while engine.has_work:
        engine.step()
    assert engine.stats()["finished"] == 2
