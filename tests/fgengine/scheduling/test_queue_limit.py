"""The queue's limits: what is counted, what is refused or dropped, and the defaults."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from fgengine.config import EngineConfig
from fgengine.cost import CostModel
from fgengine.engine import Engine
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.queue_limit import NO_LIMIT, Queue, QueueLimit
from fgengine.scheduling.refusal import QueueFull, QueueTimeout
from fgengine.speed import Speed

Build = Callable[..., Engine]
BATCH = 4


def request(id: str, prompt_len: int = 10, arrival: float = 0.0) -> Request:
    return Request.new(id, [1] * prompt_len, SamplingParams(max_tokens=5), arrival)


def filled(limit: QueueLimit, unfinished: int, prompt_len: int = 10) -> Queue:
    queue = Queue(limit, BATCH)
    for index in range(unfinished):
        queue.add(request(str(index), prompt_len), now=0.0)
    return queue


# -- what is refused ---------------------------------------------------------------------------------------


def test_the_limit_counts_requests_beyond_a_full_batch() -> None:
    queue = filled(QueueLimit(requests=2), BATCH + 1)
    queue.check(10, now=0.0)
    queue.add(request("last"), now=0.0)
    assert (queue.waiting, queue.full) == (2, True)
    with pytest.raises(QueueFull, match=r"the queue is full: 2 requests wait \(max_queue\)"):
        queue.check(10, now=0.0)


def test_no_request_is_refused_while_the_batch_has_free_places() -> None:
    queue = filled(QueueLimit(requests=1, prompt_tokens=1), BATCH - 1)
    assert not queue.full
    queue.check(1000, now=0.0)


def test_prompt_tokens_of_started_requests_do_not_count() -> None:
    limit = QueueLimit(prompt_tokens=100)
    queue = filled(limit, BATCH + 2, prompt_len=16)
    assert queue.prompt_tokens == 96
    queue.check(4, now=0.0)
    with pytest.raises(QueueFull, match="96 prompt tokens wait, and the limit is 100"):
        queue.check(5, now=0.0)
    first = request("0", 16)
    queue.start(first)
    queue.check(20, now=0.0)
    queue.start(first)  # a second start, as after discarded KV
    assert queue.prompt_tokens == 80


def test_a_prompt_longer_than_the_limit_is_accepted_if_no_other_waits() -> None:
    queue = filled(QueueLimit(prompt_tokens=100), BATCH)
    with pytest.raises(QueueFull):
        queue.check(5000, now=0.0)
    for index in range(BATCH):
        queue.start(request(str(index)))
    queue.check(5000, now=0.0)


def test_without_a_limit_no_request_is_refused() -> None:
    queue = filled(NO_LIMIT, 10_000)
    queue.check(10**6, now=0.0)
    assert not queue.full
    assert queue.deadline == math.inf
    assert queue.overdue(now=10**9) == []


def test_a_preempted_request_waits_like_one_that_has_not_started(symbolic_engine: Build) -> None:
    """Under MLFQ nearly every request has started, so a limit on unstarted requests would have no effect."""
    engine = symbolic_engine("mlfq", device_blocks=400, host_blocks=400, queue=QueueLimit(requests=6))
    refused = 0
    for index in range(60):
        try:
            engine.add(str(index), [1, 2, 3], SamplingParams(max_tokens=60))
        except QueueFull:
            refused += 1
        engine.step()
    assert refused > 0
    assert len(engine.scheduler.requests) <= BATCH + 6
    assert engine.scheduler.queue.unstarted < 3


# -- what is counted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["static", "fcfs", "mlfq", "sj-mlfq", "srpt", "vtc"])
@pytest.mark.parametrize(("host_blocks", "offloading"), [(20, "reactive"), (0, "recompute"), (20, "none")])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.slow
def test_the_counters_equal_a_recount(
    symbolic_engine: Build, policy: str, host_blocks: int, offloading: str, overlap: bool
) -> None:
    """This holds while requests are added, started, discarded, restarted, aborted, dropped and finished."""
    source = random.Random(f"{policy} {offloading} {overlap}")
    engine = symbolic_engine(
        policy,
        device_blocks=24,
        host_blocks=host_blocks,
        offloading=offloading,
        overlap=overlap,
        queue=QueueLimit(requests=9, prompt_tokens=120, timeout=0.5),
    )
    machine: Any = engine.runner
    queue, requests = engine.scheduler.queue, engine.scheduler.requests
    planned = 0
    started: set[str] = set()
    ends = {"dropped": 0, "aborted": 0, "finished": 0}
    delays: list[float] = []
    for index in range(600):
        draw = source.random()
        if draw < 0.6 and index < 500:
            prompt = [source.randrange(2000) for _ in range(source.choice([1, 5, 30]))]
            try:
                engine.add(str(index), prompt, SamplingParams(max_tokens=source.choice([1, 4, 20])))
            except QueueFull as error:
                delays.append(error.retry_after)
        elif draw < 0.65 and requests:
            assert engine.abort(source.choice(list(requests)))
            ends["aborted"] += 1
        for dropped, why in engine.expire():
            assert dropped.id not in started
            assert dropped.finish_reason == "timeout"
            assert isinstance(why, QueueTimeout)
            ends["dropped"] += 1
        if engine.has_work:
            ends["finished"] += sum(event.request.finished for event in engine.step())
        for plan in machine.plans[planned:]:
            started.update(item.request.id for item in plan.items)
        planned = len(machine.plans)
        waiting = [r for r in requests.values() if r.id not in started]
        assert queue.unfinished == len(requests)
        assert queue.waiting == max(0, len(requests) - BATCH) <= 9
        assert queue.unstarted == len(waiting)
        assert queue.prompt_tokens == sum(r.prompt_len for r in waiting)
        assert all(r.arrival + 0.5 > engine.clock.now() - 1.0 for r in waiting)
        engine.scheduler.kv.check()
    while engine.has_work:
        engine.step()
    assert (queue.unfinished, queue.unstarted, queue.prompt_tokens) == (0, 0, 0)
    assert len(delays) > 0
    assert all(1.0 <= delay <= 60.0 for delay in delays)
    assert ends["aborted"] > 0
    assert ends["finished"] > 0
    if offloading == "recompute" and policy != "static":
        assert engine.scheduler.counters.recomputed_tokens > 0


def test_generate_serves_more_prompts_than_the_queue_holds(symbolic_engine: Build) -> None:
    engine = symbolic_engine(queue=QueueLimit(requests=2))
    prompts = [[index + 1] * 3 for index in range(30)]
    finished = engine.generate(prompts, SamplingParams(max_tokens=4))
    assert [list(request.tokens[:3]) for request in finished] == prompts
    assert {request.finish_reason for request in finished} == {"length"}


# -- the timeout -------------------------------------------------------------------------------------------


def test_only_unstarted_requests_are_dropped_soon_after_the_timeout(symbolic_engine: Build) -> None:
    engine = symbolic_engine("fcfs", queue=QueueLimit(timeout=0.2))
    for index in range(8):
        engine.add(str(index), [1, 2, 3], SamplingParams(max_tokens=100))
    dropped: dict[str, float] = {}
    longest_step = 0.0
    while engine.has_work:
        for request, why in engine.expire():
            dropped[request.id] = engine.clock.now()
            assert "waited for 0.2 s" in str(why)
        before = engine.clock.now()
        engine.step()
        longest_step = max(longest_step, engine.clock.now() - before)
    assert sorted(dropped) == ["4", "5", "6", "7"]
    assert all(0.2 <= at <= 0.2 + longest_step for at in dropped.values())
    assert engine.scheduler.kv.device.num_free == engine.scheduler.kv.device.num_blocks


# -- when to try again -------------------------------------------------------------------------------------


def test_retry_after_follows_the_pace_of_the_last_requests() -> None:
    queue = filled(QueueLimit(requests=100), BATCH + 20)
    for index in range(10):  # one request ends every two seconds
        ended = request(str(index))
        ended.finish("length", 2.0 * (index + 1))
        queue.forget(ended)
    assert queue.waiting == 10
    assert queue.retry_after(now=20.0) == pytest.approx(20.0)
    assert queue.retry_after(now=40.0) == pytest.approx(40.0)  # no request has ended since then
    assert queue.retry_after(now=4000.0) == 60.0


def test_retry_after_is_predicted_until_enough_requests_have_ended() -> None:
    queue = filled(QueueLimit(requests=100, seconds_per_request=0.5), BATCH + 20)
    assert queue.retry_after(now=0.1) == pytest.approx(10.0)
    assert filled(QueueLimit(requests=100), BATCH + 20).retry_after(now=0.1) == 1.0


# -- the default -------------------------------------------------------------------------------------------

FAST = Speed(prompt_tokens_per_second=10_000, output_tokens_per_second=2_000)
SLOW = Speed(prompt_tokens_per_second=20, output_tokens_per_second=2)


def unused_speed() -> Speed | None:
    raise AssertionError("the speed must be requested only for a default")


def test_the_default_is_a_minutes_work() -> None:
    limit = QueueLimit.of(EngineConfig(), lambda: FAST)
    assert limit.requests == int(60 / (256 / 10_000 + 256 / 2_000))
    assert limit.prompt_tokens == 600_000
    assert limit.describe() == (
        "queue: at most 390 waiting requests and at most 600,000 prompt tokens, about 60 s of work"
    )


@pytest.mark.parametrize("speed", [SLOW, None])
def test_the_default_is_never_below_a_few_batches(speed: Speed | None) -> None:
    limit = QueueLimit.of(EngineConfig(max_batch_size=16), lambda: speed)
    assert limit.requests == 96
    assert limit.prompt_tokens == 96 * 512


def test_configured_limits_are_used_unchanged() -> None:
    config = EngineConfig(max_queue=5, max_queue_tokens=70, queue_timeout=9.0)
    limit = QueueLimit.of(config, unused_speed)
    assert (limit.requests, limit.prompt_tokens, limit.timeout) == (5, 70, 9.0)
    assert limit.describe() == (
        "queue: at most 5 waiting requests and at most 70 prompt tokens; "
        "one that has not started after 9 s is dropped"
    )


def test_zero_means_no_limit() -> None:
    assert QueueLimit.of(EngineConfig(max_queue=0), unused_speed) == NO_LIMIT
    assert NO_LIMIT.describe() == "queue: any number of waiting requests"
    assert QueueLimit.of(EngineConfig(max_queue=0, max_queue_tokens=9), unused_speed).prompt_tokens == 9
    assert QueueLimit.of(EngineConfig(max_queue_tokens=0), lambda: FAST).prompt_tokens is None


def test_the_speed_of_a_cost_model_assumes_full_batches() -> None:
    cost = CostModel(step=0.02, prefill_token=0.001, decode_request=0.001)
    speed = Speed.of(cost, max_batch_size=10)
    assert speed.output_tokens_per_second == pytest.approx(10 / 0.03)
    assert speed.prompt_tokens_per_second == pytest.approx(256 / 0.276)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_queue", -1),
        ("max_queue_tokens", -5),
        ("queue_timeout", 0.0),
        ("queue_timeout", math.nan),
        ("queue_timeout", math.inf),
    ],
)
def test_invalid_settings_are_named(setting: str, value: float) -> None:
    with pytest.raises(ValueError, match=setting):
        EngineConfig(**{setting: value})  # type: ignore[arg-type]
