"""GET /metrics: the server's figures in Prometheus' text format.

Figures that vLLM has too have its names, labels and buckets, so that its dashboards and rules work. The
others begin with ``fgengine_``. Only answers are counted here: a scrape collects what the server and the
engine have counted. If the engine does not answer in time, only the server's own figures are served, and
``fgengine_engine_up`` is 0.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any, get_args

from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

from fgengine.server.client import EngineError, State
from fgengine.server.connections import ConnectionCounters
from fgengine.server.generation import Service
from fgengine.server.routes import PROBES
from fgengine.server.timings import LAG_BUCKETS, Histogram

DISTRIBUTION = "fgbench"
STATS_SECONDS = 3.0
"""How long a scrape waits for the engine, which answers between two steps. Prometheus waits for 10 s."""
LAG_SECONDS = 0.25
"""Seconds between two measurements of the event loop's lag."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
NOT_COUNTED = PROBES | {"/version", "/server_info"}
"""Routes that are asked by machines. vLLM does not count its own ones either."""

ENGINE_GAUGES: dict[str, tuple[str, str]] = {
    "running": ("vllm:num_requests_running", "Requests in the batch."),
    "waiting": ("vllm:num_requests_waiting", "Requests that wait for their turn and have no KV on the host."),
    "swapped": ("fgengine_requests_swapped", "Requests whose KV is on the host or on its way from it."),
    "queued_requests": (
        "fgengine_requests_beyond_batch",
        "Unfinished requests beyond a full batch; fgengine_requests_beyond_batch_limit is their limit.",
    ),
    "max_queue": (
        "fgengine_requests_beyond_batch_limit",
        "Limit of unfinished requests beyond a full batch; at it, new ones get 429.",
    ),
    "unstarted_requests": ("fgengine_requests_unstarted", "Requests that have not started."),
    "unstarted_prompt_tokens": (
        "fgengine_prompt_tokens_unstarted",
        "Prompt tokens of the requests that have not started.",
    ),
    "max_queue_tokens": (
        "fgengine_prompt_tokens_unstarted_limit",
        "Limit of prompt tokens that have not started; at it, new requests get 429.",
    ),
    "max_batch_size": ("fgengine_batch_size_limit", "Requests in a full batch."),
    "transfers_in_flight": ("fgengine_kv_transfers_in_flight", "Copies of KV that are not done yet."),
    "under_pressure": (
        "fgengine_under_pressure",
        "1 while memory is nearly full, so that no request starts; else 0.",
    ),
    "uptime_seconds": ("fgengine_uptime_seconds", "Seconds since the engine started."),
}
"""Figure of ``Engine.stats`` -> its name here and its meaning."""
ENGINE_COUNTERS: dict[str, tuple[str, str]] = {
    "preemptions": ("vllm:num_preemptions", "Preemptions of requests."),
    "steps": ("fgengine_steps", "Steps of the engine."),
    "recomputed_tokens": ("fgengine_recomputed_tokens", "Computed tokens whose KV was discarded."),
    "pressure_seconds": (
        "fgengine_pressure_seconds",
        "Seconds in which memory was nearly full, so that no request started.",
    ),
    "copy_wait_seconds": (
        "fgengine_copy_wait_seconds",
        "Seconds in which the device was idle because every request waited for a copy of its KV.",
    ),
    "model_seconds": ("fgengine_model_seconds", "Seconds in which the model computed."),
    "engine_seconds": ("fgengine_scheduling_seconds", "Seconds of steps outside the model: scheduling."),
    "between_seconds": ("fgengine_between_steps_seconds", "Seconds between steps while there was work."),
}
"""The same for figures that only increase; Prometheus adds _total to their names."""
REQUEST_HISTOGRAMS = (
    ("vllm:time_to_first_token_seconds", "first_token", "From a request's arrival to its first token."),
    ("vllm:inter_token_latency_seconds", "token_gaps", "Between two tokens of a request."),
    ("vllm:request_time_per_output_token_seconds", "mean_token_gap", "Mean time between a request's tokens."),
    ("vllm:e2e_request_latency_seconds", "whole", "From a request's arrival to its last token."),
    ("vllm:request_queue_time_seconds", "queued", "Wait for the request's turn, after preemptions too."),
    ("vllm:request_prefill_time_seconds", "prefill", "Computation of the request's prompt."),
    ("vllm:request_decode_time_seconds", "decode", "Decoding of the request."),
    ("vllm:request_inference_time_seconds", "computed", "Prefill and decoding of the request."),
    (
        "fgengine_request_swapped_time_seconds",
        "swapped",
        "Wait for the request's KV, after its turn had come.",
    ),
    (
        "vllm:request_prompt_tokens",
        "prompt_lengths",
        "Prompt tokens of a request. With n > 1, each answer counts as one.",
    ),
    ("vllm:request_generation_tokens", "output_lengths", "Generated tokens of a request."),
    ("vllm:request_max_num_generation_tokens", "output_lengths", "Generated tokens of the longest answer."),
    ("vllm:request_params_max_tokens", "asked_lengths", "Limit of the request's generated tokens."),
    ("vllm:request_num_preemptions", "preemptions", "Preemptions of a request."),
)
"""Name, attribute of ``RequestTimings``, and meaning."""
ABORTED = "aborted"
"""Instead of a class of status: the client left before the end of its answer."""
OUTCOMES = ("finished", "aborted", "refused", "rejected", "timed_out", "failed")
"""The counters of ``ServerCounters`` that say how a POST request ended."""


class Metrics:
    """The figures of one application."""

    def __init__(self, service: Service, model_name: str | None = None) -> None:
        """``model_name``: the name in the figures; None: the engine's own."""
        self._service = service
        self._model_name = model_name
        self._answers: Counter[tuple[str, str, str]] = Counter()
        """Number of requests by route, method and class of status."""
        self._lag = Histogram(LAG_BUCKETS)
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)
        self._asked: asyncio.Task[dict[str, Any]] | None = None
        """The question to the engine that has no answer yet. Scrapes share it: a hung engine gets one."""

    async def serve(self, request: web.Request) -> web.Response:
        """GET /metrics: the figures, in the version of the text format that the client asks for."""
        labels = self._labels()
        found = [
            *answer_figures(self._answers),
            *server_figures(self._service, self._lag),
            *request_figures(self._service, labels),
            *engine_figures(await self._engine_stats(), labels),
        ]
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected([*found, *self._process.collect()]))
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    def count(self, request: web.Request, status: int | None) -> None:
        """Count a request that has ended; ``status``: of its answer; None: the client left before its end."""
        resource = request.match_info.route.resource
        route = "none" if resource is None else resource.canonical
        if route not in NOT_COUNTED:
            method = request.method if request.method in METHODS else "other"  # clients invent names
            self._answers[route, method, ABORTED if status is None else f"{status // 100}xx"] += 1

    async def watch_event_loop(self, app: web.Application) -> AsyncIterator[None]:
        """Measure how late the event loop runs, while the application runs."""
        task = asyncio.create_task(self._measure_lag())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _measure_lag(self) -> None:
        while True:
            due = time.monotonic() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            self._lag.observe(max(0.0, time.monotonic() - due))

    def _labels(self) -> Labels:
        """Return the labels of vLLM's figures."""
        model = self._service.engine.model
        name = self._model_name or ("" if model is None else model.model_name)
        return {"model_name": name, "engine": "0"}

    async def _engine_stats(self) -> dict[str, Any] | None:
        """Return the engine's statistics; None if it does not answer in time, or not at all."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._service.engine.stats())
            self._asked.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            return await asyncio.wait_for(asyncio.shield(self._asked), STATS_SECONDS)
        except (EngineError, asyncio.TimeoutError):
            return None


class _Collected:
    """Figures that are collected already, in the form that prometheus_client encodes."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


Labels = Mapping[str, str]


def _gauge(name: str, help: str, value: float, labels: Labels) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _counter(name: str, help: str, value: float, labels: Labels) -> CounterMetricFamily:
    family = CounterMetricFamily(name, help, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _histogram(name: str, help: str, histogram: Histogram, labels: Labels) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, help, labels=list(labels))
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    buckets = list(zip(bounds, histogram.cumulative(), strict=True))
    family.add_metric(list(labels.values()), buckets, histogram.sum)
    return family


def answer_figures(answers: Mapping[tuple[str, str, str], int]) -> Iterator[Metric]:
    """Yield the number of HTTP requests, under the names that vLLM's dashboards use."""
    family = CounterMetricFamily(
        "http_requests",
        f"HTTP requests by route, method and class of status; {ABORTED}: the client left before the end.",
        labels=["handler", "method", "status"],
    )
    for labels, number in sorted(answers.items()):
        family.add_metric(labels, number)
    yield family


def server_figures(service: Service, lag: Histogram) -> Iterator[Metric]:
    """Yield what the server counts itself, whatever the state of the engine."""
    counters, engine = service.counters, service.engine
    yield _gauge("fgengine_build_info", "The version.", 1, {"version": metadata.version(DISTRIBUTION)})
    states = GaugeMetricFamily(
        "fgengine_engine_state", "1 for the state that the engine is in, else 0.", labels=["state"]
    )
    for state in get_args(State):
        states.add_metric([state], engine.state == state)
    yield states
    outcomes = CounterMetricFamily(
        "fgengine_requests",
        "POST requests by outcome: refused, the request was invalid; rejected, the queue or the server was "
        "full, or the server was ending; timed_out, it waited too long; failed, the engine or server failed; "
        "aborted, the client left.",
        labels=["outcome"],
    )
    for outcome in OUTCOMES:
        outcomes.add_metric([outcome], getattr(counters, f"requests_{outcome}"))
    yield outcomes
    yield _counter("fgengine_requests_received", "POST requests.", counters.requests_received, {})
    yield _gauge(
        "fgengine_requests_in_flight", "POST requests without an outcome.", counters.requests_in_flight, {}
    )
    yield from connection_figures(service.connections)
    yield _histogram("fgengine_event_loop_lag_seconds", "How late the server's event loop runs.", lag, {})


def connection_figures(counters: ConnectionCounters) -> Iterator[Metric]:
    """Yield the counters of connections."""
    yield _gauge("fgengine_connections_open", "Open connections.", counters.connections_open, {})
    for name, help, value in (
        (
            "fgengine_connections_refused",
            "Connections answered with 503, or closed while idle, because there were too many or their "
            "unfinished bodies were too large.",
            counters.connections_refused,
        ),
        (
            "fgengine_connections_timed_out",
            "Clients that took too long to send a request or to read an answer.",
            counters.connections_timed_out,
        ),
        (
            "fgengine_connections_malformed",
            "Requests that are not HTTP. They have no outcome.",
            counters.malformed_requests,
        ),
    ):
        yield _counter(name, help, value, {})


def request_figures(service: Service, labels: Labels) -> Iterator[Metric]:
    """Yield latencies, lengths and ends of the requests, under vLLM's names."""
    timings = service.timings
    yield _counter(
        "vllm:prompt_tokens",
        "Prompt tokens of started requests; with n > 1, each answer's.",
        timings.prompt_tokens,
        labels,
    )
    yield _counter("vllm:generation_tokens", "Generated tokens.", timings.generated_tokens, labels)
    ended = CounterMetricFamily(
        "vllm:request_success",
        "Requests that ended after the engine had accepted them, by reason; with n > 1, each answer is one.",
        labels=[*labels, "finished_reason"],
    )
    for reason, number in timings.ended.items():
        ended.add_metric([*labels.values(), reason], number)
    yield ended
    for name, figure, help in REQUEST_HISTOGRAMS:
        yield _histogram(name, help, getattr(timings, figure), labels)


def engine_figures(stats: Mapping[str, Any] | None, labels: Labels) -> Iterator[Metric]:
    """Yield the engine's figures.

    Args:
        stats: the result of ``Engine.stats``; None: the engine does not answer.
        labels: the labels of figures that vLLM has too.
    """
    yield _gauge(
        "fgengine_engine_up", "1 if the engine answers within some seconds, else 0.", stats is not None, {}
    )
    if stats is None:
        return
    names = {name: str(stats[name]) for name in ("policy", "analytic_device") if name in stats}
    yield _gauge("fgengine_engine_info", "What the engine runs.", 1, names)
    for make, table in ((_gauge, ENGINE_GAUGES), (_counter, ENGINE_COUNTERS)):
        for figure, (name, help) in table.items():
            if isinstance(value := stats.get(figure), int | float):  # None: there is no limit
                yield make(name, help, value, labels if name.startswith("vllm:") else {})
    levels = GaugeMetricFamily(
        "fgengine_queue_requests", "Requests in each queue of the policy.", labels=["level"]
    )
    for level in stats.get("levels", ()):
        levels.add_metric([str(level["name"])], level["requests"])
    yield levels
    yield from _kv_figures(stats, labels)


def _kv_figures(stats: Mapping[str, Any], labels: Labels) -> Iterator[Metric]:
    sizes = GaugeMetricFamily("fgengine_kv_blocks", "Blocks of each KV pool.", labels=["pool"])
    free = GaugeMetricFamily("fgengine_kv_free_blocks", "Free blocks of each KV pool.", labels=["pool"])
    for pool in ("device", "host"):
        size, available = stats.get(f"num_{pool}_blocks"), stats.get(f"free_{pool}_blocks")
        if size is None or available is None:
            continue
        sizes.add_metric([pool], size)
        free.add_metric([pool], available)
        used = 1 - available / size if size else 0.0
        if pool == "device":
            yield _gauge(
                "vllm:kv_cache_usage_perc", "Used share of the device's KV pool, 0 to 1.", used, labels
            )
        else:
            yield _gauge(
                "fgengine_host_kv_usage_ratio", "Used share of the host's KV pool, 0 to 1.", used, {}
            )
    yield sizes
    yield free
    block_bytes = stats.get("block_bytes")
    if block_bytes is not None:
        yield _gauge("fgengine_kv_block_bytes", "Size of a block of KV.", block_bytes, {})
        moved = CounterMetricFamily(
            "fgengine_kv_moved_bytes", "KV copied: out, to the host; in, from it.", labels=["direction"]
        )
        moved.add_metric(["out"], stats["offloaded_blocks"] * block_bytes)
        moved.add_metric(["in"], stats["uploaded_blocks"] * block_bytes)
        yield moved
