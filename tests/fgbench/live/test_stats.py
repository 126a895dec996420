"""Tests of snapshots of servers' statistics, and of the rates between two snapshots."""

from __future__ import annotations

import math
import threading
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgbench.backends.probe import SilentServer, from_vllm
from fgbench.live.meter import Meter, Poller
from fgbench.live.stats import COUNTERS, LevelCount, Pool, Snapshot, rates_between, started_again


def stats(**values: Any) -> dict[str, Any]:
    return {
        "running": 16,
        "max_batch_size": 16,
        "waiting": 9,
        "swapped": 3,
        "num_device_blocks": 400,
        "free_device_blocks": 50,
        "num_host_blocks": 0,
        "free_host_blocks": 0,
        **dict.fromkeys(COUNTERS, 0),
        "levels": [{"name": "Q1", "requests": 3, "quantum": 0.5}, {"name": "all", "requests": 4}],
        "policy": "sj-mlfq",
        "model": "tiny",
        "uptime_seconds": 10.0,
        "block_bytes": 1000,
        **values,
    }


def test_a_snapshot_of_a_fastgen_server() -> None:
    snapshot = Snapshot.of(stats(), 5.0)
    assert (snapshot.running, snapshot.waiting, snapshot.swapped, snapshot.requests) == (16, 9, 3, 28)
    assert snapshot.device == Pool(0.875, 350, 400)
    assert snapshot.host == Pool(0.0, 0, 0)
    assert snapshot.levels == (LevelCount("Q1", 3, 0.5), LevelCount("all", 4, None))
    assert (snapshot.policy, snapshot.model, snapshot.uptime) == ("sj-mlfq", "tiny", 10.0)


def test_a_snapshot_of_an_older_server() -> None:
    old = {key: stats()[key] for key in ("running", "waiting", "swapped", "num_device_blocks")}
    snapshot = Snapshot.of(old, 5.0)
    assert snapshot.running == 16
    assert (snapshot.device, snapshot.host, snapshot.levels, snapshot.uptime) == (None, None, (), None)


def test_memory_pressure_is_true_false_or_not_known() -> None:
    assert Snapshot.of(stats(under_pressure=True), 0.0).under_pressure is True
    assert Snapshot.of(stats(under_pressure=False), 0.0).under_pressure is False
    assert Snapshot.of(stats(), 0.0).under_pressure is None
    assert Snapshot.of(stats(under_pressure="yes"), 0.0).under_pressure is None


def test_recent_pressure_covers_one_minute() -> None:
    """Memory is under pressure from second 100 to second 130 of 200 seconds."""
    meter = Meter(1.0)
    seen = {}
    for second in range(1, 201):
        spent = min(30.0, max(0.0, second - 100.0))
        meter.take(stats(uptime_seconds=float(second), pressure_seconds=spent), float(second))
        seen[second] = meter.recent_pressure()
    assert seen[1] is None
    assert seen[11] == (0.0, 10.0)
    assert seen[100] == (0.0, 60.0)
    assert seen[112] == pytest.approx((12.0, 60.0))
    assert seen[150] == pytest.approx((30.0, 60.0))
    assert seen[180] == pytest.approx((10.0, 60.0))
    assert seen[200] == (0.0, 60.0)


def test_a_restarted_server_has_no_recent_pressure() -> None:
    meter = Meter(1.0)
    for second, spent in ((50.0, 20.0), (51.0, 21.0), (1.0, 0.0), (2.0, 0.0)):
        meter.take(stats(uptime_seconds=second, pressure_seconds=spent), second)
    assert meter.recent_pressure() == (0.0, 1.0)
    older = Meter(1.0)
    for second in (1.0, 2.0):
        older.take({"running": 3, "uptime_seconds": second}, second)
    assert older.recent_pressure() is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(stats())), anything), anything)
@pytest.mark.slow
def test_invalid_values_never_raise(values: dict[str, Any], levels: Any) -> None:
    before, after = Snapshot.of(values, 1.0), Snapshot.of(stats(levels=[levels]), 2.0)
    for pair in ((before, after), (after, before), (before, before)):
        rates = rates_between(*pair)
        assert rates is None or all(v is None or math.isfinite(v) for v in asdict(rates).values())


def test_rates_use_the_servers_clock() -> None:
    before = Snapshot.of(stats(), 5.0)
    later = stats(
        uptime_seconds=12.0,
        generated_tokens=100,
        prompt_tokens=40,
        finished=3,
        preemptions=5,
        offloaded_blocks=8,
        uploaded_blocks=6,
        recomputed_tokens=7,
        work_steps=10,
        model_seconds=0.4,
        engine_seconds=0.1,
        copy_wait_seconds=0.9,
        pressure_seconds=2.1,
    )
    rates = rates_between(before, Snapshot.of(later, 8.0))  # the answer was slow
    assert rates is not None
    assert asdict(rates) == {
        "seconds": 2.0,
        "generated_tokens": 50.0,
        "prompt_tokens": 20.0,
        "finished": 1.5,
        "preemptions": 2.5,
        "offloaded_blocks": 4.0,
        "uploaded_blocks": 3.0,
        "recomputed_tokens": 3.5,
        "offloaded_bytes": 4000.0,
        "uploaded_bytes": 3000.0,
        "step_seconds": pytest.approx(0.05),
        "copy_wait_share": pytest.approx(0.45),
        "pressure_share": 1.0,  # the last step began before the first snapshot
    }


def test_without_steps_no_step_time_and_without_uptime_the_clients_clock() -> None:
    before = Snapshot.of(stats(uptime_seconds=None), 5.0)
    rates = rates_between(before, Snapshot.of(stats(uptime_seconds=None, finished=4), 9.0))
    assert rates is not None
    assert (rates.seconds, rates.finished, rates.step_seconds) == (4.0, 1.0, None)
    assert rates_between(before, before) is None


@pytest.mark.parametrize(
    ("again", "restarted"),
    [
        ({"uptime_seconds": 1.0}, True),
        ({"uptime_seconds": 12.0, "finished": 40}, True),  # the counter started at 0 again
        ({"uptime_seconds": 12.0, "finished": 60}, False),
    ],
)
def test_a_restarted_server_leaves_a_gap(again: dict[str, Any], restarted: bool) -> None:
    first, second = stats(finished=50), stats(finished=50) | again
    assert started_again(Snapshot.of(first, 1.0), Snapshot.of(second, 2.0)) == restarted
    meter = Meter(1.0)
    meter.take(first, 1.0)
    meter.take(second, 2.0)
    assert meter.restarts == int(restarted)
    assert (meter.rates is None) == restarted
    assert meter.history["finished"].cells(9) == [None if restarted else 5.0]
    meter.take(second | {"uptime_seconds": 14.0, "finished": 61}, 3.0)
    assert meter.restarts == int(restarted)
    assert meter.rates is not None
    assert meter.rates.finished is not None
    assert meter.rates.finished >= 0


def test_the_poller_uses_its_own_thread_and_continues_after_silence() -> None:
    asked, enough = [], threading.Event()

    def ask() -> dict[str, Any]:
        asked.append(threading.current_thread().name)
        if len(asked) >= 4:
            enough.set()
        if len(asked) == 2:
            raise SilentServer("no answer")
        return stats(uptime_seconds=float(len(asked)), finished=len(asked))

    poller = Poller(ask, interval=0.01)
    poller.start()
    assert enough.wait(5)
    poller.stop()
    assert set(asked) == {"stats"}
    assert poller.meter.rates is not None
    assert poller.meter.rates.finished == pytest.approx(1.0)


METRICS = r"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a/b"} 3.0
vllm:num_requests_running{engine="1",model_name="a/b"} 4.0
vllm:num_requests_waiting{engine="0",model_name="a/b"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="a/b"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="a/b"} 0.5
vllm:prompt_tokens_total{engine="0",model_name="a/b"} 1.5e+03
vllm:generation_tokens_total{engine="0",model_name="a/b"} 900.0
vllm:num_preemptions_total{engine="0",model_name="a/b"} 1.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="a/b"} 5.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="a/b"} 6.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="a/b"} NaN
python_info{version="3.12"} 1.0
"""


def test_a_snapshot_of_a_vllm_server() -> None:
    snapshot = Snapshot.of(from_vllm(METRICS), 0.0)
    assert (snapshot.running, snapshot.waiting, snapshot.swapped, snapshot.model) == (7, 2, None, "a/b")
    assert snapshot.device == Pool(0.5)
    assert snapshot.counters == {
        "prompt_tokens": 1500.0,
        "generated_tokens": 900.0,
        "preemptions": 1.0,
        "finished": 11.0,
    }
    assert from_vllm("python_info 1.0\n<html>") == {}
    assert from_vllm("vllm:num_requests_running nonsense\nvllm:num_requests_waiting NaN") == {}
