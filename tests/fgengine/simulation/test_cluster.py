"""A replica that takes several steps at once makes the same decisions as an engine; clusters and routers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fgengine.clock import VirtualClock
from fgengine.config import Offloading
from fgengine.cost import CostModel
from fgengine.engine import Engine
from fgengine.kv.manager import KVManager
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import PolicyContext, make_policy
from fgengine.scheduling.queue_limit import NO_LIMIT, QueueLimit
from fgengine.scheduling.refusal import QueueFull, QueueTimeout, RequestRefused
from fgengine.scheduling.scheduler import Scheduler
from fgengine.scheduling.step_builder import Limits
from fgengine.simulation.cluster import Cluster
from fgengine.simulation.copying import SimulatedCopyEngine
from fgengine.simulation.replica import Completion, Replica
from fgengine.simulation.routing import ROUTERS, make_router
from fgengine.simulation.runner import SimulatedRunner

COST = CostModel(
    step=0.010259,
    prefill_token=0.00057948,
    prefill_pair=3.1353e-7,
    decode_request=0.0006993,
    decode_context=1.3785e-6,
    copy_bytes_per_second=9e8,
)
BLOCK_BYTES = 368_640
Work = Sequence[tuple[float, int, int]]


def scheduler(
    policy: str,
    device_blocks: int = 4000,
    host_blocks: int = 100,
    offloading: Offloading = "reactive",
    queue: QueueLimit = NO_LIMIT,
) -> Scheduler:
    return Scheduler(
        make_policy(policy, PolicyContext(COST, starvation_limit=3.0, max_batch_size=8)),
        KVManager(device_blocks, host_blocks, 16),
        Limits(2048, 2048, block_bytes=BLOCK_BYTES),
        offloading=offloading,
        cost=COST,
        queue=queue,
    )


def some_work(count: int, rate: float, seed: int) -> Work:
    """Return a random list of (arrival, prompt tokens, output tokens)."""
    source, when, work = random.Random(seed), 0.0, []
    for _ in range(count):
        work.append((when, source.choice([5, 40, 400]), source.choice([1, 30, 300])))
        when += source.expovariate(rate)
    return work


def request(index: int, arrival: float, prompt: int, output: int) -> Request:
    params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
    return Request(str(index), prompt, params, arrival, bytearray(prompt), phase_since=arrival)


def step_by_step(scheduler: Scheduler, work: Work, cost: CostModel = COST) -> tuple[list[Completion], Engine]:
    clock = VirtualClock()
    copies = SimulatedCopyEngine(clock, BLOCK_BYTES, cost.copy_bytes_per_second)
    engine = Engine(scheduler, SimulatedRunner(cost, clock), copies, clock)
    requests: list[Request] = []
    times: dict[str, list[float]] = {}
    refusals: dict[str, RequestRefused] = {}
    while len(requests) < len(work) or engine.has_work:
        if not engine.has_work:
            clock.advance_to(max(clock.now(), work[len(requests)][0]))
        while len(requests) < len(work) and work[len(requests)][0] <= clock.now():
            requests.append(request(len(requests), *work[len(requests)]))
            try:
                scheduler.add(requests[-1], clock.now())
            except RequestRefused as refusal:
                requests[-1].finish("error", clock.now())
                refusals[requests[-1].id] = refusal
        for dropped, why in engine.expire():
            refusals[dropped.id] = why
        for event in engine.step() if engine.has_work else ():
            times.setdefault(event.request.id, []).append(clock.now())
    return [Completion(r, times.get(r.id, ()), refusals.get(r.id)) for r in requests], engine


def advancing(replicas: Sequence[Replica], work: Work, router: str = "round-robin") -> list[Completion]:
    requests = (request(i, *one) for i, one in enumerate(work))
    endings = Cluster(replicas, make_router(router)).serve(requests)
    return sorted(endings, key=lambda ending: int(ending.request.id))


@pytest.mark.parametrize("policy", ["fcfs", "mlfq", "sj-mlfq", "srpt"])
@pytest.mark.parametrize(
    ("device_blocks", "host_blocks", "offloading"),
    [
        (4000, 100, "reactive"),
        (90, 100, "reactive"),
        (90, 0, "reactive"),
        (90, 100, "recompute"),
        (90, 100, "auto"),
        (90, 100, "none"),
        (4000, 100, "proactive"),
        (90, 100, "proactive"),
    ],
)
@pytest.mark.parametrize("rate", [1.0, 5.0])
@pytest.mark.slow
def test_advances_decide_as_single_steps_do(
    policy: str, device_blocks: int, host_blocks: int, offloading: Offloading, rate: float
) -> None:
    work = some_work(40, rate, seed=int(10 * rate) + device_blocks)
    advances_decide_as_single_steps(policy, device_blocks, host_blocks, offloading, work)


@pytest.mark.parametrize(("rate", "seed"), [(3.0, 0), (5.0, 12), (3.0, 13), (5.0, 17)])
def test_advances_do_not_skip_a_proactive_upload(rate: float, seed: int) -> None:
    """In these cases, several steps at once while KV is on the host would change decisions."""
    advances_decide_as_single_steps("sj-mlfq", 150, 100, "proactive", some_work(40, rate, seed))


@pytest.mark.parametrize("policy", ["fcfs", "sj-mlfq", "srpt"])
@pytest.mark.parametrize(
    ("queue", "refusal"),
    [
        (QueueLimit(requests=3), QueueFull),
        (QueueLimit(prompt_tokens=500), QueueFull),
        (QueueLimit(timeout=2.0), QueueTimeout),
        (QueueLimit(requests=6, prompt_tokens=2000, timeout=1.0), RequestRefused),
    ],
)
@pytest.mark.slow
def test_advances_refuse_and_drop_as_single_steps_do(
    policy: str, queue: QueueLimit, refusal: type[RequestRefused]
) -> None:
    work = some_work(80, 12.0, seed=3)
    advances_decide_as_single_steps(policy, 90, 100, "reactive", work, queue)
    endings = advancing([Replica(scheduler(policy, 90, 100, queue=queue), COST)], work)
    kinds = [type(ending.refusal) for ending in endings if ending.refusal is not None]
    assert 0 < len(kinds) < len(work)
    assert all(issubclass(kind, refusal) for kind in kinds)


def advances_decide_as_single_steps(
    policy: str,
    device_blocks: int,
    host_blocks: int,
    offloading: Offloading,
    work: Work,
    queue: QueueLimit = NO_LIMIT,
) -> None:
    single = scheduler(policy, device_blocks, host_blocks, offloading, queue)
    expected, engine = step_by_step(single, work)
    advances = scheduler(policy, device_blocks, host_blocks, offloading, queue)
    replica = Replica(advances, COST, keep_token_times=True)
    got = advancing([replica], work)
    for mine, theirs in zip(got, expected, strict=True):
        assert str(mine.refusal) == str(theirs.refusal)
        assert list(mine.token_times) == list(theirs.token_times)
        assert mine.request.phase_since == theirs.request.phase_since
        assert mine.request.accounting() == pytest.approx(theirs.request.accounting(), abs=1e-9)
    assert replica.scheduler.counters == single.counters
    assert replica.copy_wait_seconds == pytest.approx(engine.work.copy_wait_seconds, abs=1e-9)
    replica.scheduler.kv.check()
    assert replica.scheduler.kv.device.num_free == device_blocks


def test_an_undisturbed_decode_is_one_advance(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Replica(scheduler("fcfs"), COST)
    plans = []
    schedule = replica.scheduler.schedule
    monkeypatch.setattr(replica.scheduler, "schedule", lambda now: plans.append(now) or schedule(now))
    (ending,) = advancing([replica], [(0.0, 100, 300)])
    assert len(plans) <= 3
    assert ending.request.num_generated == 300
    assert ending.request.phase_since == pytest.approx(COST.alone_seconds(100, 300), rel=1e-9)


@pytest.mark.parametrize("router", list(ROUTERS))
def test_every_router_serves_all_requests_and_uses_every_replica(router: str) -> None:
    replicas = [Replica(scheduler("fcfs"), COST) for _ in range(4)]
    endings = advancing(replicas, some_work(80, 20.0, seed=1), router)
    assert all(e.request.num_generated == e.request.params.max_tokens for e in endings)
    assert all(replica.scheduler.counters.finished > 0 for replica in replicas)
    assert sum(replica.scheduler.counters.finished for replica in replicas) == 80
    assert all(replica.outstanding_seconds == 0.0 for replica in replicas)


def test_waits_for_slow_copies_are_counted() -> None:
    """A copy takes 40 ms per block and a few requests fill the pool, so sometimes nothing can run."""
    slow = replace(COST, copy_bytes_per_second=BLOCK_BYTES / 0.04)
    work = some_work(40, 5.0, seed=3)
    endings, engine = step_by_step(scheduler("sj-mlfq", 60), work, slow)
    replica = Replica(scheduler("sj-mlfq", 60), slow)
    advancing([replica], work)
    took = max(ending.request.phase_since for ending in endings)
    assert engine.work.copy_wait_seconds > 0.01 * took
    assert replica.copy_wait_seconds == pytest.approx(engine.work.copy_wait_seconds)
    assert engine.work.seconds + engine.work.copy_wait_seconds <= took * (1 + 1e-9)


def test_cluster_stats_are_sums_over_the_replicas() -> None:
    replicas = [Replica(scheduler("sj-mlfq", 90), COST) for _ in range(2)]
    cluster = Cluster(replicas, make_router("round-robin"))
    requests = (request(i, *one) for i, one in enumerate(some_work(40, 10.0, seed=3)))
    ends = [ending.request.phase_since for ending in cluster.serve(requests)]
    stats = cluster.stats()
    assert stats["finished"] == 40
    assert stats["offloaded_blocks"] == sum(r.scheduler.counters.offloaded_blocks for r in replicas) > 0
    assert stats["copy_wait_seconds"] == pytest.approx(sum(r.copy_wait_seconds for r in replicas))
    assert stats["pressure_seconds"] == sum(r.scheduler.counters.pressure_seconds for r in replicas)
    assert stats["uptime_seconds"] == pytest.approx(max(ends), abs=0.1)  # the last copies may end later


class _FakeReplica:
    """The part of a replica that routers read."""

    def __init__(self, num_unfinished: int, outstanding_seconds: float) -> None:
        self.num_unfinished, self.outstanding_seconds = num_unfinished, outstanding_seconds


def test_each_router_chooses_the_expected_replica() -> None:
    replicas = [_FakeReplica(5, 1.0), _FakeReplica(2, 9.0), _FakeReplica(3, 4.0)]
    assert make_router("least-loaded")(replicas) == 0
    assert make_router("shortest-queue")(replicas) == 1
    turns = make_router("round-robin")
    assert [turns(replicas) for _ in range(4)] == [0, 1, 2, 0]
    draws = [make_router("power-of-two", seed)(replicas) for seed in range(50)]
    assert set(draws) == {1, 2}  # the longest queue is never the shorter one of two
    with pytest.raises(ValueError, match="there is no router 'random'"):
        make_router("random")


def test_a_request_that_can_never_run_is_refused_and_others_are_served() -> None:
    replica = Replica(scheduler("fcfs", device_blocks=20), COST)
    refused, served = advancing([replica], [(0.0, 400, 10), (0.1, 40, 10)])
    assert "device pool has 20" in str(refused.refusal)
    assert refused.request.num_generated == 0
    assert served.refusal is None
    assert served.request.num_generated == 10


def test_a_refused_worker_of_a_closed_loop_pauses_before_its_next_request() -> None:
    """The pause has an integer number of seconds, as in the load generator."""
    replica = Replica(scheduler("fcfs", queue=QueueLimit(requests=2)), COST)
    work = [request(index, 0.0, 40, 100) for index in range(60)]
    endings = list(Cluster([replica], make_router("round-robin")).serve_closed(work, concurrency=14))
    assert len(endings) == 60
    refused = [ending for ending in endings if ending.refusal is not None]
    assert 4 <= len(refused) < 30
    starts = [ending.request.arrival for ending in endings]
    for ending in refused:
        assert isinstance(ending.refusal, QueueFull)
        again = ending.request.phase_since + ending.refusal.whole_seconds
        assert again in starts or again > max(starts)
    assert sum(ending.request.num_generated == 100 for ending in endings) == 60 - len(refused)


def test_a_request_that_needs_logits_is_refused() -> None:
    replica = Replica(scheduler("fcfs"), COST)
    params = SamplingParams(max_tokens=3, presence_penalty=0.5)
    replica.receive(Request.new("a", [1, 2], params, 0.0))
    (refused,) = replica.advance()
    assert str(refused.refusal).startswith("presence_penalty needs the model's logits")
    assert refused.request.finish_reason == "error"
    assert replica.num_unfinished == 0
