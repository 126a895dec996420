"""Detection of overload on traces of an M/G/c queue, whose load relative to capacity is known."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import pytest

from fgbench.metrics.overload import is_overloaded, shortfall
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
        assert not is_overloaded(shortfall(queue_trace(load, 300, seed, shortest_first)))


@pytest.mark.parametrize("shortest_first", [False, True])
@pytest.mark.parametrize("load", [1.3, 2.0])
def test_above_capacity_is_marked_in_any_order_of_service(load: float, shortest_first: bool) -> None:
    for seed in range(8):
        share = shortfall(queue_trace(load, 300, seed, shortest_first))
        assert is_overloaded(share)
        assert share == pytest.approx(1 - 1 / load, abs=0.1)


@pytest.mark.parametrize("num_requests", [20, 40, 80])
def test_short_runs_below_capacity_are_not_marked(num_requests: int) -> None:
    """The batch is still filling up when such a run ends; that alone is no overload."""
    marked = sum(is_overloaded(shortfall(queue_trace(0.7, num_requests, seed))) for seed in range(20))
    assert marked == 0


def test_too_few_or_simultaneous_requests_cannot_be_judged() -> None:
    few = queue_trace(2.0, 19, seed=0)
    assert shortfall(few) is None
    assert not is_overloaded(None)
    together = [RequestRecord(i, 0.0, 0.0, 5, 2, 2, 1.0, 2.0, (1.0, 2.0), finished=2.0) for i in range(30)]
    assert shortfall(together) is None


def without_token_times(records: list[RequestRecord]) -> list[RequestRecord]:
    return [replace(record, token_times=()) for record in records]


@pytest.mark.parametrize("shortest_first", [False, True])
@pytest.mark.slow
def test_first_and_last_token_are_enough_to_detect_overload(shortest_first: bool) -> None:
    """Large simulations store only these."""
    for seed in range(4):
        for load in (0.3, 0.7, 0.9):
            assert not is_overloaded(
                shortfall(without_token_times(queue_trace(load, 300, seed, shortest_first)))
            )
        for load in (1.3, 2.0):
            share = shortfall(without_token_times(queue_trace(load, 300, seed, shortest_first)))
            assert share == pytest.approx(1 - 1 / load, abs=0.1)


def test_a_closed_loop_is_never_overloaded() -> None:
    records = queue_trace(2.0, 300, 0)
    assert summarize(records, offered_rate=5.0).overloaded
    assert not summarize(records, offered_rate=None).overloaded


def test_an_interrupted_load_is_judged_by_the_requests_sent() -> None:
    for load, expected in ((0.7, False), (2.0, True)):
        records = queue_trace(load, 600, 1)
        half = sorted(record.scheduled for record in records)[300]
        assert is_overloaded(shortfall([r for r in records if r.scheduled < half])) is expected


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
        share = shortfall(records)
        assert share == pytest.approx(1.0 - 1.0 / load, abs=0.1)
        assert summarize(records, offered_rate=load).overloaded


def test_a_server_that_keeps_up_is_not_overloaded() -> None:
    for seed in range(4):
        records = with_a_bounded_queue(0.7, 600, seed)
        assert not summarize(records, offered_rate=0.7).overloaded


def test_a_run_that_rejects_nearly_all_requests_is_overloaded() -> None:
    served = queue_trace(0.3, 10, 0)
    rejected = [RequestRecord(i, 0.1 * i, 0.1 * i, 5, 5, rejected="http 429: busy") for i in range(10, 100)]
    assert shortfall(served + rejected) is None
    assert summarize(served + rejected, offered_rate=1.0).overloaded
    assert summarize(served + rejected, offered_rate=None).overloaded  # in a closed loop too
