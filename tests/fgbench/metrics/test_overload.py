"""Detection of overload on traces of an M/G/c queue, whose load relative to capacity is known."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import pytest

from fgbench.metrics.overload import Judgement, judge
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import summarize

SERVERS, MEAN_TOKENS, GAP = 16, 100, 0.02


def queue_trace(
    load: float, num_requests: int, seed: int, shortest_first: bool = False
) -> list[RequestRecord]:
    """Return records of Poisson arrivals at ``load`` times the capacity.

    The server has 16 slots, each of which streams a token every 20 ms.
    """
    rng = np.random.default_rng(seed)
    tokens = np.maximum(2, rng.exponential(MEAN_TOKENS, num_requests).astype(int))
    rate = load * SERVERS / (tokens.mean() * GAP)
    gaps = rng.exponential(1.0, num_requests)
    arrivals = np.cumsum(gaps / gaps.mean() / rate)  # the load of the trace is exact
    free, waiting, records, arrived = [0.0] * SERVERS, [], [], 0
    while len(records) < num_requests:
        now = heapq.heappop(free)
        if not waiting and arrived < num_requests:
            now = max(now, arrivals[arrived])
        while arrived < num_requests and arrivals[arrived] <= now:
            heapq.heappush(waiting, (tokens[arrived] if shortest_first else arrived, arrived))
            arrived += 1
        index = heapq.heappop(waiting)[1]
        n = int(tokens[index])
        times = tuple((now + GAP * np.arange(1, n + 1)).tolist())
        heapq.heappush(free, times[-1])
        scheduled = float(arrivals[index])
        records.append(
            RequestRecord(
                index, scheduled, scheduled, 5, n, n, times[0], times[-1], times, finished=times[-1]
            )
        )
    return records


@pytest.mark.parametrize("shortest_first", [False, True])
@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
@pytest.mark.slow
def test_below_capacity_is_not_marked(load: float, shortest_first: bool) -> None:
    for seed in range(8):
        assert not judge(queue_trace(load, 300, seed, shortest_first)).overloaded


@pytest.mark.parametrize("shortest_first", [False, True])
@pytest.mark.parametrize("load", [1.3, 2.0])
def test_above_capacity_is_marked_in_any_order_of_service(load: float, shortest_first: bool) -> None:
    for seed in range(8):
        judged = judge(queue_trace(load, 300, seed, shortest_first))
        assert judged.overloaded
        assert judged.shortfall == pytest.approx(1 - 1 / load, abs=0.1)


@pytest.mark.parametrize("num_requests", [20, 40, 80])
def test_short_runs_below_capacity_are_not_marked(num_requests: int) -> None:
    """The batch is still filling up when such a run ends; that alone is no overload."""
    marked = sum(bool(judge(queue_trace(0.7, num_requests, seed)).overloaded) for seed in range(20))
    assert marked == 0


def test_too_few_or_simultaneous_requests_cannot_be_judged() -> None:
    few = queue_trace(2.0, 19, seed=0)
    assert judge(few) == Judgement(None, why_not="fewer than 20 streamed answers")
    together = [RequestRecord(i, 0.0, 0.0, 5, 2, 2, 1.0, 2.0, (1.0, 2.0), finished=2.0) for i in range(30)]
    assert judge(together) == Judgement(None, why_not="all requests were due at the same moment")


def without_token_times(records: list[RequestRecord]) -> list[RequestRecord]:
    return [replace(record, token_times=()) for record in records]


@pytest.mark.parametrize("shortest_first", [False, True])
@pytest.mark.slow
def test_first_and_last_token_are_enough_to_detect_overload(shortest_first: bool) -> None:
    """Large simulations store only these."""
    for seed in range(4):
        for load in (0.3, 0.7, 0.9):
            records = without_token_times(queue_trace(load, 300, seed, shortest_first))
            assert judge(records).overloaded is False
        for load in (1.3, 2.0):
            records = without_token_times(queue_trace(load, 300, seed, shortest_first))
            assert judge(records).shortfall == pytest.approx(1 - 1 / load, abs=0.1)


def test_a_closed_loop_is_never_overloaded() -> None:
    records = queue_trace(2.0, 300, 0)
    assert summarize(records, offered_rate=5.0).overloaded
    assert not summarize(records, offered_rate=None).overloaded


def test_an_interrupted_load_is_judged_by_the_requests_sent() -> None:
    for load, expected in ((0.7, False), (2.0, True)):
        records = queue_trace(load, 600, 1)
        half = sorted(record.scheduled for record in records)[300]
        assert judge([r for r in records if r.scheduled < half]).overloaded is expected


def with_a_bounded_queue(
    load: float, num_requests: int, seed: int, max_waiting: int = 20
) -> list[RequestRecord]:
    """Return a trace like ``queue_trace``, served in order of arrival.

    Requests that find the queue full are rejected.
    """
    arrivals = sorted(queue_trace(load, num_requests, seed), key=lambda record: record.scheduled)
    free, starts, records = [0.0] * SERVERS, list[float](), []
    for asked in arrivals:
        if sum(start > asked.scheduled for start in starts) >= max_waiting:
            record = RequestRecord(asked.index, asked.scheduled, asked.sent, 5, asked.asked_tokens)
            records.append(replace(record, rejected="http 429: the queue is full"))
            continue
        start = max(asked.scheduled, heapq.heappop(free))
        times = tuple(start + GAP * (k + 1) for k in range(asked.asked_tokens))
        heapq.heappush(free, times[-1])
        starts.append(start)
        records.append(
            replace(asked, first_token=times[0], last_token=times[-1], token_times=times, finished=times[-1])
        )
    return records


@pytest.mark.parametrize("load", [1.5, 2.0, 10.0])
@pytest.mark.slow
def test_a_server_that_rejects_what_it_cannot_serve_is_overloaded(load: float) -> None:
    """Its backlog remains small, and each accepted request is served in time."""
    for seed in range(4):
        records = with_a_bounded_queue(load, 1500, seed)
        assert judge(records).shortfall == pytest.approx(1.0 - 1.0 / load, abs=0.1)
        assert summarize(records, offered_rate=load).overloaded


def test_a_server_that_keeps_up_is_not_overloaded() -> None:
    for seed in range(4):
        records = with_a_bounded_queue(0.7, 600, seed)
        assert not summarize(records, offered_rate=0.7).overloaded


def test_a_run_that_rejects_nearly_all_requests_is_overloaded() -> None:
    served = queue_trace(0.3, 10, 0)
    rejected = [RequestRecord(i, 0.1 * i, 0.1 * i, 5, 5, rejected="http 429: busy") for i in range(10, 100)]
    assert judge(served + rejected).overloaded is None
    assert summarize(served + rejected, offered_rate=1.0).overloaded
    assert summarize(served + rejected, offered_rate=None).overloaded  # in a closed loop too


@pytest.mark.parametrize("shortest_first", [False, True])
@pytest.mark.parametrize("count", [100, 300])
@pytest.mark.parametrize("load", [1.5, 5.0, 20.0, 200.0])
def test_overload_is_detected_however_heavy_it_is(load: float, count: int, shortest_first: bool) -> None:
    """Under heavy overload nearly every request waits, so a typical TTFT is a waiting time."""
    judged = [judge(queue_trace(load, count, seed, shortest_first)).overloaded for seed in range(10)]
    assert judged.count(True) == 10


def of_one_token(load: float, count: int, seed: int) -> list[RequestRecord]:
    """Return records of requests with one output token; each keeps the only server busy for 0.1 s."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1.0, count)
    arrivals = np.cumsum(gaps / gaps.mean() * 0.1 / load)
    free, records = 0.0, []
    for index, at in enumerate(arrivals.tolist()):
        free = max(free, at) + 0.1
        records.append(RequestRecord(index, at, at, 512, 1, 1, free, free, (free,), finished=free))
    return records


@pytest.mark.parametrize("stored", [True, False])
def test_answers_of_one_token_are_judged(stored: bool) -> None:
    def judged(load: float, seed: int) -> bool | None:
        records = of_one_token(load, 200, seed)
        return judge(records if stored else without_token_times(records)).overloaded

    assert sum(judged(0.7, seed) is not False for seed in range(20)) == 0
    for load in (1.5, 5.0, 30.0, 200.0):
        assert all(judged(load, seed) for seed in range(20))


def test_answers_that_were_not_streamed_cannot_be_judged() -> None:
    records = [replace(one, output_tokens=50, asked_tokens=50) for one in of_one_token(5.0, 100, 0)]
    assert judge(records).overloaded is None
    assert summarize(records, offered_rate=5.0).why_unjudged == "fewer than 20 streamed answers"


def test_a_load_that_is_shorter_than_three_answers_cannot_be_judged() -> None:
    """Thirty requests within a second, each answered in 20 s at its own pace: the batch was never full."""
    records = []
    for index in range(30):
        at = index / 30
        times = tuple(at + 0.1 + 0.1 * np.arange(200))
        records.append(
            RequestRecord(index, at, at, 5, 200, 200, times[0], times[-1], times, finished=times[-1])
        )
    judged = judge(records)
    assert (judged.overloaded, judged.why_not) == (None, "the load was shorter than 3 typical answers")


def streamed(index: int, at: float, ttft: float, *, prompt: int = 8, clump: int = 1) -> RequestRecord:
    """Return an answer of 40 tokens, 50 ms each, of which ``clump`` arrive together."""
    times = tuple(at + ttft + 0.05 * clump * (i // clump) for i in range(40))
    return RequestRecord(index, at, at, prompt, 40, 40, times[0], times[-1], times, finished=times[-1])


@pytest.mark.parametrize("clump", [1, 2, 3, 4])
def test_clumps_of_tokens_are_no_overload(clump: int) -> None:
    assert judge([streamed(i, float(i), 0.1, clump=clump) for i in range(60)]).overloaded is False


@pytest.mark.parametrize("requests", [20, 30, 60])
def test_long_prompts_are_no_overload(requests: int) -> None:
    """A server without a queue needs 10 s for each tenth prompt, which is long, and 0.05 s for others."""
    long = [i % 10 == 9 for i in range(requests)]
    records = [
        streamed(i, float(i), 10.0 if long[i] else 0.05, prompt=9000 if long[i] else 8)
        for i in range(requests)
    ]
    assert judge(records).overloaded is not True


def test_many_failures_leave_it_open() -> None:
    """Requests that time out are those that would show the backlog."""
    calm = [streamed(i, float(i), 0.1) for i in range(60)]
    timed_out = [replace(r, error="timeout: 20 s") if r.index % 3 == 0 else r for r in calm]
    found = judge(timed_out)
    assert (found.overloaded, found.why_not) == (None, "many requests failed")
    few = [replace(r, error="timeout: 20 s") if r.index == 0 else r for r in calm]
    assert judge(few).overloaded is False


@pytest.mark.parametrize("clump", [1, 2, 4])
def test_long_answers_in_clumps_are_no_overload(clump: int) -> None:
    """Answers of 20 s from a server without a queue: a third of the tokens is not due at the last arrival."""
    records = []
    for i in range(60):
        times = tuple(i + 0.1 + 0.05 * clump * (token // clump) for token in range(400))
        records.append(
            RequestRecord(i, float(i), float(i), 8, 400, 400, times[0], times[-1], times, finished=times[-1])
        )
    assert judge(records).overloaded is not True


def test_a_load_of_one_or_two_answers_is_not_called_calm() -> None:
    """Thirty requests within 30 s, each answered in 20 s at its own pace."""
    records = []
    for i in range(30):
        times = tuple(i + 0.1 + 0.1 * token for token in range(200))
        records.append(
            RequestRecord(i, float(i), float(i), 8, 200, 200, times[0], times[-1], times, finished=times[-1])
        )
    found = judge(records)
    assert (found.overloaded, found.why_not) == (None, "the load was shorter than 3 typical answers")
