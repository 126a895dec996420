"""GET /metrics: Prometheus' text, with vLLM's names, and true also without an answer from the engine."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from raw_http import Raw

from fgbench.backends.prefix_cache import Reset, reset_cache
from fgbench.backends.probe import from_vllm
from fgbench.backends.sampling import ServerWatch
from fgbench.results.server_samples import FILE, read_samples
from fgengine.scheduling.refusal import QueueTimeout
from fgengine.server import metrics
from fgengine.server.client import EngineError
from fgengine.server.options import ServerOptions
from fgengine.server.routes import PROBES
from fgengine.server.timings import Histogram, RequestTimings

VLLM = {
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "num_preemptions_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "time_to_first_token_seconds_bucket",
    "inter_token_latency_seconds_bucket",
    "request_time_per_output_token_seconds_sum",
    "e2e_request_latency_seconds_bucket",
    "request_queue_time_seconds_sum",
    "request_prefill_time_seconds_sum",
    "request_decode_time_seconds_sum",
    "request_inference_time_seconds_sum",
    "request_prompt_tokens_bucket",
    "request_generation_tokens_bucket",
    "request_max_num_generation_tokens_bucket",
    "request_params_max_tokens_bucket",
    "request_num_preemptions_bucket",
}
"""Series that the dashboards of vLLM 0.32 draw and that mean the same here."""


async def text(served: Any, accept: str = "") -> str:
    headers = {"Accept": accept} if accept else {}
    async with served.session.get(served.url + "/metrics", headers=headers) as response:
        assert response.status == 200
        return str(await response.text())


def samples(page: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in read_text(page):
        for one in family.samples:
            labels = tuple(sorted(one.labels.items()))
            assert labels not in found.setdefault(one.name, {}), f"{one.name} {labels} is there twice"
            found[one.name][labels] = one.value
    return found


def only(found: dict[str, Any], name: str, **labels: str) -> float:
    (value,) = [v for key, v in found[name].items() if set(labels.items()) <= set(key)]
    return float(value)


async def test_vllms_figures_have_its_names_and_labels(serving: Any) -> None:
    async with serving(policy="sj-mlfq") as (url, session):
        body = {"prompt": [5] * 8, "max_tokens": 6, "ignore_eos": True}
        async with session.post(url + "/v1/completions", json=body) as response:
            assert response.status == 200
        async with session.get(url + "/metrics") as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=")
            page = await response.text()
        async with session.get(url + "/v1/models") as response:
            model = (await response.json())["data"][0]["id"]
    found = samples(page)
    assert {f"vllm:{name}" for name in VLLM} <= set(found)
    for name in VLLM:
        for labels in found[f"vllm:{name}"]:
            assert dict(labels)["engine"] == "0"
            assert dict(labels)["model_name"] == model
    assert only(found, "vllm:prompt_tokens_total") == 8
    assert only(found, "vllm:generation_tokens_total") == 6
    assert only(found, "vllm:request_success_total", finished_reason="length") == 1
    assert only(found, "vllm:request_success_total", finished_reason="abort") == 0
    assert only(found, "vllm:time_to_first_token_seconds_count") == 1
    assert only(found, "vllm:inter_token_latency_seconds_count") == 5
    assert only(found, "vllm:kv_cache_usage_perc") == 0
    assert only(found, "vllm:request_prompt_tokens_bucket", le="10.0") == 1
    assert only(found, "vllm:request_prompt_tokens_bucket", le="5.0") == 0
    parts = sum(
        only(found, f"{name}_seconds_sum")
        for name in (
            *("vllm:request_queue_time", "vllm:request_prefill_time", "vllm:request_decode_time"),
            "fgengine_request_swapped_time",
        )
    )
    assert parts == pytest.approx(only(found, "vllm:e2e_request_latency_seconds_sum"), abs=0.02)
    assert only(found, "fgengine_engine_info", policy="sj-mlfq") == 1
    assert only(found, "fgengine_queue_requests", level="Q1") == 0
    assert only(found, "fgengine_kv_blocks", pool="device") == 200
    assert only(found, "fgengine_kv_free_blocks", pool="device") == 200
    assert only(found, "fgengine_engine_up") == 1
    assert only(found, "process_resident_memory_bytes") > 1e6
    assert {
        name for name in found if not name.startswith(("vllm:", "fgengine_", "process_", "http_"))
    } == set()
    sampled = from_vllm(page)
    assert sampled["prompt_tokens"] == 8
    assert sampled["generated_tokens"] == 6
    assert sampled["finished"] == 1
    assert sampled["device_used_share"] == 0
    assert sampled["model"] == model


async def test_a_request_is_counted_by_how_it_ended(served: Any, fake: Any) -> None:
    await served.post("/v1/completions", {"prompt": "abc", "max_tokens": 9, "stop": "ca"})
    await served.post("/v1/completions", {"prompt": "abc", "n": -1})
    leaves = asyncio.create_task(served.post("/v1/completions", {"prompt": [fake.WAIT], "max_tokens": 2}))
    await served.until(lambda: bool(served.engine.requests))
    await asyncio.sleep(0.05)
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    await served.until(lambda: served.service.counters.requests_aborted == 1)
    found = samples(await text(served))
    ended = {dict(k)["finished_reason"]: v for k, v in found["vllm:request_success_total"].items()}
    assert ended == {"stop": 1, "length": 0, "abort": 1, "error": 0}
    outcomes = {dict(k)["outcome"]: v for k, v in found["fgengine_requests_total"].items()}
    assert outcomes == {
        "finished": 1,
        "aborted": 1,
        "refused": 1,
        "rejected": 0,
        "timed_out": 0,
        "failed": 0,
    }
    assert only(found, "fgengine_requests_in_flight") == 0
    assert only(found, "http_requests_total", handler="/v1/completions", status="2xx") == 1
    assert only(found, "http_requests_total", handler="/v1/completions", status="4xx") == 1


async def test_a_broken_engine_leaves_the_servers_own_figures(served: Any, fake: Any) -> None:
    await served.post("/v1/completions", {"prompt": "abc"})
    body = {"prompt": [fake.WAIT], "max_tokens": 2}
    waiting = [asyncio.create_task(served.post("/v1/completions", body)) for _ in range(2)]
    await served.until(lambda: served.service.timings.generated_tokens == 16 + 2)

    def broken() -> Any:
        raise RuntimeError("the fake broke")

    served.engine.step = broken
    assert [(await one)[0] for one in waiting] == [503, 503]
    found = samples(await text(served))
    assert only(found, "fgengine_engine_up") == 0
    assert only(found, "fgengine_engine_state", state="broken") == 1
    assert only(found, "fgengine_engine_state", state="ready") == 0
    assert only(found, "vllm:request_success_total", finished_reason="length") == 1
    assert only(found, "vllm:request_success_total", finished_reason="error") == 2
    assert only(found, "fgengine_requests_total", outcome="failed") == 2
    assert "fgengine_engine_info" not in found


async def test_a_hung_engine_is_asked_once_and_the_server_answers(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[asyncio.Future[Any]] = []

    def stats() -> asyncio.Future[Any]:
        asked.append(asyncio.get_running_loop().create_future())
        return asked[-1]

    monkeypatch.setattr(metrics, "STATS_SECONDS", 0.05)
    monkeypatch.setattr(served.service.engine, "stats", lambda: asyncio.wait_for(stats(), None))
    pages = await asyncio.gather(*(text(served) for _ in range(5)))
    pages.append(await text(served))
    assert {only(samples(page), "fgengine_engine_up") for page in pages} == {0}
    assert len(asked) == 1
    asked[0].set_exception(EngineError("the engine is broken"))  # an answer after the timeout is ignored
    await asyncio.sleep(0.01)
    again = asyncio.create_task(text(served))
    await served.until(lambda: len(asked) == 2)
    asked[1].set_result({"running": 7, "policy": "fcfs"})
    found = samples(await again)
    assert only(found, "fgengine_engine_up") == 1
    assert only(found, "vllm:num_requests_running") == 7


async def test_labels_cannot_add_lines(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = 'ü"} 1\nfgengine_engine_up 9\n\\'
    stats = {"policy": evil, "levels": [{"name": evil, "requests": 3}], "running": 1, "max_queue": None}

    async def answer() -> dict[str, Any]:
        return stats

    monkeypatch.setattr(served.service.engine, "stats", answer)
    monkeypatch.setattr(
        served.service.engine, "model", type("Model", (), {"model_name": evil, "max_model_len": 9})()
    )
    async with served.session.request("PROPFIND", served.url + "/generate") as response:
        assert response.status == 405
    async with served.session.get(served.url + "/no/such\nroute") as response:
        assert response.status == 404
    found = samples(await text(served))
    assert only(found, "fgengine_engine_up") == 1
    assert only(found, "fgengine_engine_info", policy=evil) == 1
    assert only(found, "fgengine_queue_requests", level=evil) == 3
    assert only(found, "vllm:num_requests_running", model_name=evil) == 1
    assert only(found, "http_requests_total", handler="none", status="4xx", method="other") == 1
    assert only(found, "http_requests_total", handler="none", status="4xx", method="GET") == 1
    assert "fgengine_requests_beyond_batch_limit" not in found


async def test_openmetrics_is_served_to_those_who_ask_for_it(served: Any) -> None:
    page = await text(served, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert page.endswith("# EOF\n")
    assert {"vllm:generation_tokens", "fgengine_requests"} <= {f.name for f in read_openmetrics(page)}


async def test_each_application_has_its_own_figures(served_with: Any) -> None:
    async with served_with(ServerOptions()) as one, served_with(ServerOptions()) as other:
        assert (await one.post("/v1/completions", {"prompt": [5], "max_tokens": 2}))[0] == 200
        pages = [samples(await text(server)) for server in (one, other)]
    assert [only(page, "fgengine_requests_received_total") for page in pages] == [1, 0]
    answers = [page.get("http_requests_total", {}) for page in pages]
    assert [sum(numbers.values()) for numbers in answers] == [1, 0]


async def test_the_counters_of_connections_are_the_stats(served: Any) -> None:
    raw = await Raw.to(served.url)
    raw.send(b"nonsense\r\n\r\n")
    await raw.everything()
    raw.leave()
    served.connections.counters.connections_refused = 5
    served.connections.counters.connections_timed_out = 6
    found = samples(await text(served))
    assert only(found, "fgengine_connections_open") >= 1
    assert only(found, "fgengine_connections_refused_total") == 5
    assert only(found, "fgengine_connections_timed_out_total") == 6
    assert only(found, "fgengine_connections_malformed_total") == 1


async def test_an_answer_that_a_client_did_not_wait_for_is_counted_once(served: Any, fake: Any) -> None:
    url, body = served.url + "/v1/completions", {"prompt": [97, fake.WAIT], "max_tokens": 9, "stream": True}
    async with served.session.post(url, json=body) as response:
        await response.content.readany()
    await served.until(lambda: served.service.counters.requests_aborted == 1)
    found = samples(await text(served))
    assert found["http_requests_total"] == {
        (("handler", "/v1/completions"), ("method", "POST"), ("status", "aborted")): 1
    }


async def test_routes_that_machines_ask_are_not_counted(served: Any) -> None:
    for path in PROBES:
        async with served.session.get(served.url + path) as response:
            assert response.status == 200
    assert "http_requests_total" not in samples(await text(served))


async def test_each_answer_of_a_request_is_one_of_the_engines_requests(served: Any) -> None:
    await served.post("/v1/completions", {"prompt": "abc", "max_tokens": 2, "n": 4})
    page = await text(served)
    found = samples(page)
    assert only(found, "vllm:prompt_tokens_total") == 12
    assert only(found, "vllm:request_prompt_tokens_count") == 4
    assert only(found, "vllm:request_success_total", finished_reason="length") == 4
    assert only(found, "fgengine_requests_total", outcome="finished") == 1


async def test_siblings_of_a_request_that_waited_too_long_are_counted(served: Any, fake: Any) -> None:
    body = {"prompt": [97, fake.WAIT], "max_tokens": 9, "n": 3}
    asking = asyncio.create_task(served.post("/v1/completions", body))
    await served.until(lambda: sum(r.num_generated for r in served.engine.requests.values()) == 3)
    last = list(served.engine.requests.values())[-1]
    served.engine.expired = [(last, QueueTimeout("the request waited for 5 s", 0.2))]
    assert (await asking)[0] == 503
    found = samples(await text(served))
    ended = {dict(k)["finished_reason"]: v for k, v in found["vllm:request_success_total"].items()}
    assert ended == {"stop": 0, "length": 0, "abort": 2, "error": 0}
    assert only(found, "fgengine_requests_total", outcome="timed_out") == 1


async def test_the_event_loops_lag_is_measured(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lag() -> float:
        return only(samples(await text(served)), "fgengine_event_loop_lag_seconds_sum")

    before = await lag()
    await asyncio.sleep(0.02)
    time.sleep(metrics.LAG_SECONDS + 0.3)  # blocks the loop
    await asyncio.sleep(metrics.LAG_SECONDS)
    assert await lag() - before > 0.25


async def test_a_benchmark_samples_our_server_and_resets_no_cache_of_it(served: Any, tmp_path: Path) -> None:
    """Our /metrics have vLLM's names, but our server has no route that resets a cache."""
    assert await asyncio.to_thread(reset_cache, served.url, "fgengine") == Reset(False)
    assert await asyncio.to_thread(reset_cache, served.url, "") == Reset(False)

    def watch() -> int:
        with ServerWatch(served.url, tmp_path / FILE, interval=0.05) as watching:
            pass
        return watching.samples

    assert await asyncio.to_thread(watch) >= 1
    assert read_samples(tmp_path)[0]["device_used_share"] == 0


def test_the_buckets_are_cumulative_and_include_their_bound() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    histogram.observe(0.5, 3)
    assert histogram.cumulative() == [2, 6, 7]
    assert histogram.sum == pytest.approx(0.05 + 0.1 + 0.5 * 4 + 7.0)


def test_the_gaps_of_a_request_add_up_to_the_time_after_its_first_token() -> None:
    clock = iter([10.5, 10.6, 10.9, 11.0])
    timings = RequestTimings(lambda: next(clock))
    request = timings.request(prompt_tokens=4, max_tokens=50, arrival=10.0)
    for tokens in (2, 1, 3):
        request.received(tokens)
    request.finished("stop", {"queued": 1, "swapped": 2, "prefill": 3, "decode": 4, "preemptions": 5})
    assert (timings.prompt_tokens, timings.generated_tokens) == (4, 6)
    assert timings.first_token.sum == pytest.approx(0.5)
    assert timings.token_gaps.cumulative()[-1] == 5
    assert timings.token_gaps.sum == pytest.approx(0.4)
    assert timings.mean_token_gap.sum == pytest.approx(0.4 / 5)
    assert timings.whole.sum == pytest.approx(1.0)
    assert timings.computed.sum == 7
    assert timings.ended == {"stop": 1, "length": 0, "abort": 0, "error": 0}


def test_the_names_are_valid_and_different() -> None:
    tables = (*metrics.ENGINE_GAUGES.values(), *metrics.ENGINE_COUNTERS.values())
    names = [name for name, _ in tables] + [name for name, _, _ in metrics.REQUEST_HISTOGRAMS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"(vllm:|fgengine_)[a-z0-9_]+", name) for name in names)
    assert not [name for name in names if name.endswith("_total")]


@pytest.mark.parametrize("server_options", [ServerOptions(served_model_name=("mine", "other"))])
async def test_the_figures_have_the_first_served_name(served: Any) -> None:
    async with served.session.get(served.url + "/metrics") as response:
        text = await response.text()
    assert re.search('vllm:generation_tokens_total{[^}]*model_name="mine"', text)
    assert 'model_name="fake"' not in text
