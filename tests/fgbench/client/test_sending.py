import asyncio
import os
import signal
import socket

import msgspec
import pytest

from fgbench.client.endpoints import endpoint_called
from fgbench.client.sending import Target, run_load
from fgbench.client.state import LoadState
from fgbench.metrics.record import RequestRecord
from fgbench.workload.workload import RequestSpec

IDS = (1, 2, 3)


def target_of(server, endpoint="completions", timeout=10.0):
    return Target(server.url, "fake", endpoint_called(endpoint), timeout)


def specs(*lengths, every=0.0):
    return [RequestSpec(i, i * every, IDS, 3, n) for i, n in enumerate(lengths)]


async def load(server, requests, **kwargs):
    records = []
    outcome = await run_load(requests, target_of(server, **kwargs), records.append)
    return outcome, sorted(records, key=lambda r: r.index)


@pytest.mark.slow
async def test_every_request_is_answered_and_timed(fake_server):
    fake_server.gap = 0.02
    outcome, records = await load(fake_server, specs(4, 6, every=0.05))
    assert outcome == "complete"
    for r in records:
        assert r.error is None
        assert r.output_tokens == r.asked_tokens == len(r.token_times)
        assert r.scheduled <= r.sent <= r.first_token < r.last_token <= r.finished
        assert r.last_token - r.first_token >= 0.9 * 0.02 * (r.output_tokens - 1)
        assert r.prompt_tokens == 3
        assert r.server == {"queued": 0.5}
    assert fake_server.bodies[0]["model"] == "fake"


@pytest.mark.slow
async def test_slow_answers_do_not_delay_an_open_loop(fake_server):
    """The load has 40 requests, 10 ms apart, and each answer takes 300 ms."""
    fake_server.gap = 0.3
    _, records = await load(fake_server, specs(*[2] * 40, every=0.01))
    assert [r.scheduled for r in records] == [i * 0.01 for i in range(40)]
    assert all(r.sent >= r.scheduled for r in records)
    lags = sorted(r.sent - r.scheduled for r in records)
    assert lags[20] < 0.02
    assert records[-1].sent < 0.39 + 0.25  # sent one after another, they would take 12 s


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("refuse", "http 400: too long"),
        ("crash", "http 500: Internal Server Error"),
        ("cut", "protocol: the connection broke"),
        ("error midway", "server: the engine broke"),
        ("garbage", "protocol: not JSON"),
        ("no usage", "protocol: the answer holds no usage"),
        ("no marker", "protocol: the stream ended before"),
        ("short", "short: asked for 5 tokens, got 4"),
    ],
)
@pytest.mark.slow
async def test_each_failure_has_its_own_error_and_does_not_affect_others(fake_server, fault, error):
    fake_server.misbehave = {5: fault}
    outcome, (good, bad, after) = await load(fake_server, specs(4, 5, 6))
    assert outcome == "complete"
    assert bad.error.startswith(error)
    assert good.ok
    assert after.ok


@pytest.mark.slow
async def test_a_slow_answer_times_out(fake_server):
    fake_server.misbehave = {5: "hang"}
    _, (record,) = await load(fake_server, specs(5), timeout=0.2)
    assert record.error == "timeout: no complete answer within 0.2 s"
    assert 0.2 <= record.finished < 2.0


@pytest.mark.slow
async def test_no_server_is_a_connect_error():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        records = []
        await run_load(specs(4), Target(url, "", endpoint_called("completions")), records.append)
    assert records[0].error.startswith("connect: ")
    assert records[0].output_tokens == 0


@pytest.mark.slow
async def test_a_complete_answer_of_generate_counts_without_usage(fake_server):
    _, (record,) = await load(fake_server, specs(7), endpoint="generate")
    assert record.ok
    assert record.output_tokens == 7
    assert record.first_token is not None


@pytest.mark.slow
async def test_sigint_saves_ended_requests_and_drops_the_others(fake_server):
    fake_server.misbehave = {5: "hang"}
    records = []

    def keep(record):
        records.append(record)
        asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    requests = [*specs(4, 5), RequestSpec(2, 30.0, IDS, 3, 4)]
    state = LoadState.of(requests)
    outcome = await run_load(requests, target_of(fake_server), keep, state=state)
    assert outcome == "interrupted"
    assert [r.index for r in records] == [0]
    assert (state.sent, state.ok, state.in_flight) == (2, 1, 1)
    assert signal.getsignal(signal.SIGINT) is before
    for _ in range(50):
        if fake_server.dropped:
            break
        await asyncio.sleep(0.02)
    assert fake_server.dropped == 1


async def test_a_record_that_cannot_be_kept_ends_the_load_at_once(fake_server):
    """A full disk: without records, the rest of the load would be useless."""
    kept = []

    def keep(record):
        if kept:
            raise OSError(28, "No space left on device")
        kept.append(record)

    requests = [*specs(2, 2, 2, 2, every=0.02), RequestSpec(4, 60.0, IDS, 3, 2)]
    with pytest.raises(OSError, match="No space left"):
        await asyncio.wait_for(run_load(requests, target_of(fake_server), keep), 10.0)
    assert len(kept) == 1


@pytest.mark.slow
async def test_a_dead_server_ends_the_load(fake_server):
    fake_server.misbehave = {5: "hang"}
    records = []
    target = target_of(fake_server)
    outcome = await run_load(specs(4, 5), target, records.append, alive=lambda: not records)
    assert outcome == "server died"
    assert len(records) == 1


async def test_an_error_while_saving_a_record_is_raised(fake_server):
    def full_disk(record):
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        await run_load(specs(4), target_of(fake_server), full_disk)


@pytest.mark.parametrize(
    ("fault", "rejected"),
    [("reject", "http 429: too busy"), ("queue timeout", "queue timeout: waited 5 s")],
)
@pytest.mark.slow
async def test_a_rejected_request_is_neither_an_answer_nor_an_error(fake_server, fault, rejected):
    fake_server.misbehave = {5: fault}
    requests = specs(4, 5, 4)
    state = LoadState.of(requests)
    records = []
    await run_load(requests, target_of(fake_server), records.append, state=state)
    records.sort(key=lambda record: record.index)
    assert [record.ok for record in records] == [True, False, True]
    failed = records[1]
    assert (failed.rejected, failed.error, failed.output_tokens) == (rejected, None, 0)
    assert failed.sent <= failed.finished
    assert (failed.first_token, failed.last_token, failed.token_times) == (None, None, ())
    assert (state.ok, state.failed, state.rejected, state.in_flight) == (2, 0, 1, 0)
    assert state.last_error is None
    assert len(fake_server.bodies) == 3  # nothing is sent again
    assert msgspec.convert(failed.to_dict(), RequestRecord) == failed


@pytest.mark.slow
async def test_a_worker_pauses_after_a_rejection(fake_server):
    """Without a pause, a closed loop would send its complete load at once. No request is sent twice."""
    fake_server.misbehave = {5: "reject", 6: "queue timeout"}
    records = []
    requests = specs(5, 4, 4, 6, 4)
    await run_load(requests, target_of(fake_server), records.append, concurrency=1)
    assert [record.asked_tokens for record in records] == [5, 4, 4, 6, 4]
    first, second, third, fourth, fifth = records
    assert second.scheduled == pytest.approx(first.finished + 1.0)  # no Retry-After
    assert second.scheduled <= second.sent
    assert third.scheduled == second.finished
    assert fourth.scheduled == third.finished
    assert fifth.scheduled == pytest.approx(fourth.finished + 3.0)


@pytest.mark.slow
async def test_an_open_loop_does_not_pause_after_a_rejection(fake_server):
    fake_server.misbehave = {5: "queue timeout"}
    _, records = await load(fake_server, specs(5, 5, 4, every=0.05))
    assert [record.scheduled for record in records] == [0.0, 0.05, 0.1]
    assert all(record.sent < 1.0 for record in records)


@pytest.mark.slow
async def test_a_503_of_another_kind_is_an_error(fake_server):
    fake_server.misbehave = {5: "unavailable"}
    _, (record,) = await load(fake_server, specs(5))
    assert (record.rejected, record.error) == (None, "http 503: starting")


@pytest.mark.slow
async def test_state_follows_the_load(fake_server):
    fake_server.misbehave = {5: "crash"}
    fake_server.gap = 0.002  # the pieces arrive one by one
    requests = specs(4, 5, 4, every=0.05)
    state = LoadState.of(requests)
    assert state.remaining is None
    records = []
    await run_load(requests, target_of(fake_server), records.append, state=state)
    assert (state.planned, state.sent, state.ok, state.failed, state.in_flight) == (3, 3, 2, 1, 0)
    assert state.last_error.startswith("http 500")
    good = [r for r in records if r.ok]
    assert state.mean_latency == pytest.approx(sum(r.last_token - r.scheduled for r in good) / 2)
    assert state.mean_normalized_latency == pytest.approx(state.mean_latency / 4)
    assert state.remaining == pytest.approx(0.0, abs=1e-6)
    assert state.tokens == 8
    assert state.lag.count == 3
    assert state.lag.quantile(1.0) == pytest.approx(max(r.sent - r.scheduled for r in records), rel=0.3)
    assert state.due == 3
    assert state.offered_rate == pytest.approx(20)
    assert state.achieved_rate == pytest.approx(20, rel=0.01)
    normalized, jct, ttft, tpot = state.recent_means()
    assert jct == pytest.approx(state.mean_latency)
    assert normalized == pytest.approx(state.mean_normalized_latency)
    assert ttft == pytest.approx(sum(r.first_token - r.scheduled for r in good) / 2)
    assert tpot == pytest.approx(sum(r.last_token - r.first_token for r in good) / 6)


@pytest.mark.slow
async def test_tokens_are_counted_as_they_arrive_and_corrected_by_the_usage(fake_server):
    fake_server.gap = 0.05
    requests = specs(6)
    state = LoadState.of(requests)
    seen = []

    async def read_tokens():
        while True:
            seen.append(state.tokens)
            await asyncio.sleep(0.01)

    reading = asyncio.create_task(read_tokens())
    await run_load(requests, target_of(fake_server), lambda record: None, state=state)
    reading.cancel()
    assert seen == sorted(seen)
    assert {1, 2, 3, 4, 5} <= set(seen)
    assert state.tokens == 6


def test_recent_means_use_only_recent_requests():
    state = LoadState(10, 100.0)
    for at, seconds in ((1.0, 9.0), (50.0, 1.0), (60.0, 3.0)):
        state.elapsed = at
        state.take(RequestRecord(0, at - seconds, at, 4, 1, 1, at, at))
    assert state.recent_means()[2] == pytest.approx(2.0)
    assert state.mean_latency == pytest.approx(13 / 3)
    state.elapsed = 200.0
    assert state.recent_means() == (None, None, None, None)


@pytest.mark.slow
async def test_a_closed_loop_has_no_offered_rate_and_ends_after_its_duration(fake_server):
    fake_server.gap = 0.02
    requests = specs(*[4] * 500)
    state = LoadState.of(requests)
    records = []
    await run_load(requests, target_of(fake_server), records.append, state=state, concurrency=3, duration=0.4)
    assert (state.workers, state.planned, state.offered_rate) == (3, 500, None)
    assert state.share == 1.0
    assert state.remaining == 0.0
    assert state.ended == len(records) < 100
    state.elapsed = 0.1
    assert state.share == pytest.approx(0.25)
    assert state.remaining == pytest.approx(0.3)


@pytest.mark.slow
async def test_requests_scheduled_after_the_duration_are_not_planned(fake_server):
    requests = specs(*[2] * 50, every=0.02)
    state = LoadState.of(requests)
    await run_load(requests, target_of(fake_server), lambda record: None, state=state, duration=0.2)
    assert (state.planned, state.sent, state.ok, state.share) == (10, 10, 10, 1.0)
    assert state.last_arrival == pytest.approx(0.18)
    assert state.achieved_rate == pytest.approx(50, rel=0.01)


async def closed_loop(server, requests, workers, **kwargs):
    records = []
    await run_load(requests, target_of(server), records.append, concurrency=workers, **kwargs)
    return sorted(records, key=lambda r: r.index)


@pytest.mark.slow
async def test_a_closed_loop_has_one_request_per_worker_in_flight(fake_server):
    """Each request is sent when an earlier one has ended, and that is its scheduled time."""
    fake_server.gap = 0.01
    records = await closed_loop(fake_server, specs(*[3, 4, 5] * 5), 3)
    assert [r.error for r in records] == [None] * 15
    moments = sorted([(r.sent, 1) for r in records] + [(r.finished, -1) for r in records])
    in_flight, largest = 0, 0
    for _, step in moments:
        in_flight += step
        largest = max(largest, in_flight)
    assert largest == 3
    assert [r.scheduled for r in records[:3]] == [0.0] * 3
    ends = sorted(r.finished for r in records)
    assert [r.scheduled for r in records[3:]] == ends[:12]
    assert all(r.sent >= r.scheduled for r in records)
    assert sorted(records, key=lambda r: r.sent) == records


@pytest.mark.slow
async def test_failures_do_not_stop_a_closed_loop(fake_server):
    fake_server.misbehave = {5: "crash"}
    records = await closed_loop(fake_server, specs(5, 4, 5, 4, 4), 2)
    assert [r.ok for r in records] == [False, True, False, True, True]


@pytest.mark.slow
async def test_more_workers_than_requests(fake_server):
    assert len(await closed_loop(fake_server, specs(3, 3), 50)) == 2


@pytest.mark.slow
async def test_nothing_is_sent_after_the_duration_and_requests_in_flight_end(fake_server):
    fake_server.gap = 0.1
    records = []
    requests = specs(*[3] * 20, every=0.02)
    await run_load(requests, target_of(fake_server), records.append, duration=0.1)
    assert sorted(r.index for r in records) == [0, 1, 2, 3, 4]
    assert all(r.ok and r.finished > 0.2 for r in records)


@pytest.mark.slow
async def test_a_closed_loop_ends_with_its_duration(fake_server):
    fake_server.gap = 0.02
    requests = specs(*[3] * 1000)
    records = await closed_loop(fake_server, requests, 2, duration=0.3)
    assert 4 <= len(records) <= 16
    assert all(r.ok and r.scheduled < 0.3 for r in records)


@pytest.mark.slow
async def test_the_achieved_rate_of_a_closed_loop(fake_server):
    fake_server.gap = 0.02
    requests = specs(*[3] * 10)
    state = LoadState.of(requests)
    await closed_loop(fake_server, requests, 2, state=state)
    assert 10 < state.achieved_rate < 60  # two workers, about 45 ms per answer


async def test_the_limit_on_open_files_is_raised(monkeypatch):
    from fgbench.client import sending

    resource = pytest.importorskip("resource")
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: limits.append(both))
    sending._allow_many_connections()
    assert limits == [(4096, 4096)]


@pytest.mark.slow
async def test_max_concurrency_bounds_the_requests_in_flight_and_the_wait_counts(fake_server):
    """Four requests are due at once, each takes 0.1 s, and two may be in flight."""
    fake_server.gap = 0.1
    records = []
    await run_load(specs(*[2] * 4), target_of(fake_server), records.append, max_concurrency=2)
    sent = sorted(record.sent for record in records)
    assert [record.scheduled for record in records] == [0.0] * 4
    assert sent[1] < 0.09
    assert sent[2] >= 0.09
    ends = [(record.sent, 1) for record in records] + [(record.last_token, -1) for record in records]
    in_flight = [sum(step for _, step in sorted(ends)[: i + 1]) for i in range(len(ends))]
    assert max(in_flight) == 2


@pytest.mark.slow
async def test_what_was_due_before_the_duration_is_sent_even_if_it_waited(fake_server):
    """Six requests are due within 0.1 s; one may be in flight, and each takes 0.1 s."""
    fake_server.gap = 0.1
    records = []
    requests = specs(*[2] * 6, every=0.02)
    await run_load(requests, target_of(fake_server), records.append, max_concurrency=1, duration=0.09)
    assert sorted(record.index for record in records) == [0, 1, 2, 3, 4]
    assert max(record.sent - record.scheduled for record in records) > 0.2
