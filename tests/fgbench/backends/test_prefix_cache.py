"""A server's prefix cache helps no load: the prompts differ, the cache is reset, and hits mark the run."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from fgbench.backends.attached import Attached
from fgbench.backends.prefix_cache import Reset, cache_counters, reset_cache
from fgbench.benchmark import execute_run
from fgbench.cli.main import app
from fgbench.metrics.conditions import CacheAccount, Conditions
from fgbench.results.run import Run, find_runs, read_run
from fgbench.spec.load import Load
from fgbench.workload.datasets import Dataset, Synthetic, Texts
from fgbench.workload.lengths import Between
from fgbench.workload.texts import TextPair

BLOCK = 4
"""Tokens of a block of the cache."""
COLD, WARM = 0.08, 0.002
"""Seconds to the first token of a prompt that is not in the cache, and of one that is."""
DATASET = Synthetic(Between(24, 40), Between(2, 3))


class CachingServer:
    """An OpenAI server with a prefix cache: its TTFT depends on the share of the prompt that it finds."""

    def __init__(self, *, dev_mode: bool = True, metrics: bool = True, usage: bool = False) -> None:
        self.dev_mode, self.metrics, self.usage = dev_mode, metrics, usage
        self.name = "vllm"
        self.counts: Callable[[int], int] = lambda tokens: tokens
        """Returns the prompt tokens that the usage reports, for those that were sent."""
        self.resets: list[str] = []
        self.prompts: list[Any] = []
        self.seen: set[tuple[Any, ...]] = set()
        self.hits = self.looked_up = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> CachingServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        application = web.Application()
        application.router.add_get("/v1/models", self._models)
        application.router.add_post("/v1/completions", self._completions)
        if self.metrics:
            application.router.add_get("/metrics", self._metrics)
        if self.dev_mode:
            application.router.add_post("/reset_prefix_cache", self._reset)
            application.router.add_post("/flush_cache", self._reset)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "owned_by": self.name}]})

    async def _reset(self, request: web.Request) -> web.Response:
        self.resets.append(request.path)
        self.seen.clear()
        return web.Response()

    async def _metrics(self, request: web.Request) -> web.Response:
        names = {
            "vllm": ("prefix_cache_hits", "prefix_cache_queries"),
            "sglang": ("cached_tokens", "prompt_tokens"),
        }
        hits, looked_up = names[self.name]
        return web.Response(
            text=f'{self.name}:{hits}_total{{engine="0"}} {self.hits}\n'
            f'{self.name}:{looked_up}_total{{engine="0"}} {self.looked_up}\n'
        )

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = body["prompt"]
        self.prompts.append(prompt)
        blocks = [tuple(prompt[:end]) for end in range(BLOCK, len(prompt) + 1, BLOCK)]
        found = next((i for i, block in enumerate(blocks) if block not in self.seen), len(blocks)) * BLOCK
        self.seen.update(blocks)
        self.looked_up += len(prompt)
        self.hits += found
        await asyncio.sleep(WARM + (COLD - WARM) * (1.0 - found / len(prompt)))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(body["max_tokens"]):
            await response.write(b'data: {"choices": [{"text": "x"}]}\n\n')
        usage = {"prompt_tokens": self.counts(len(prompt)), "completion_tokens": body["max_tokens"]}
        if self.usage:
            usage["prompt_tokens_details"] = {"cached_tokens": found}  # type: ignore[assignment]
        await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
def start() -> Iterator[Callable[..., CachingServer]]:
    """Return a function that starts a server."""
    servers: list[CachingServer] = []

    def starts(**options: bool) -> CachingServer:
        servers.append(CachingServer(**options).__enter__())
        return servers[-1]

    yield starts
    for server in servers:
        server.__exit__()


def measured(server: CachingServer, results: Path, rate: float = 200.0, dataset: Dataset = DATASET) -> Run:
    load = Load(rate=rate, num_prompts=8, num_warmup=2)
    return execute_run(Attached(server.url), dataset, load, results=results)


def ttft(run: Run) -> float:
    mean: float = run.info["summary"]["ttft"]["mean"]
    return mean


def texts() -> Texts:
    pairs = [TextPair("", f"{i} is the number of this prompt", "an answer") for i in range(20)]
    return Texts("texts", pairs, lambda some: [len(text) for text in some], lambda n, m: True)


@pytest.mark.parametrize("metrics", [True, False])
@pytest.mark.slow
def test_every_point_of_a_sweep_is_cold_even_without_a_reset(
    start: Callable[..., CachingServer], tmp_path: Path, metrics: bool
) -> None:
    """Before the prompts differed, the points after the first found all of their prompts in the cache."""
    server = start(dev_mode=False, metrics=metrics)
    arguments = ["--dataset", "synthetic", "--input-len", "24-40", "--output-len", "2", "--num-prompts", "8"]
    arguments += ["--rates", "100,200,300", "--backend", f"vllm={server.url}", "--results", str(tmp_path)]
    done = CliRunner().invoke(app, ["sweep", *arguments, "--warmup", "2"], terminal_width=200)
    assert done.exit_code in (0, 4), done.output
    runs = [read_run(path) for path in find_runs(tmp_path)]
    assert len(runs) == 3
    assert all(ttft(run) > 0.9 * COLD for run in runs)
    assert server.hits == 0
    assert "◐" not in done.output
    expected = "could not be reset (POST /reset_prefix_cache: 404); its hits were checked"
    if not metrics:
        expected = "reports no hits; token ids differ between loads"
    assert expected in " ".join(done.output.split())


@pytest.mark.slow
def test_a_repeated_run_is_cold_because_the_cache_is_reset(
    start: Callable[..., CachingServer], tmp_path: Path
) -> None:
    server = start()
    first, again = (measured(server, tmp_path) for _ in range(2))
    assert server.prompts[2:10] == server.prompts[12:]  # a repeated run sends the same prompts
    assert server.resets == ["/reset_prefix_cache"] * 2
    for run in (first, again):
        account = CacheAccount.of(run.info)
        assert account is not None
        assert (account.reset, account.hit_share, account.helped) == (True, 0.0, False)
        assert ttft(run) > 0.9 * COLD


@pytest.mark.parametrize("options", [{"metrics": True}, {"metrics": False, "usage": True}])
@pytest.mark.slow
def test_a_repeated_run_that_finds_its_prompts_is_marked(
    start: Callable[..., CachingServer], tmp_path: Path, options: dict[str, bool]
) -> None:
    server = start(dev_mode=False, **options)
    first, again = (CacheAccount.of(measured(server, tmp_path).info) for _ in range(2))
    assert first is not None
    assert again is not None
    assert not first.helped
    assert again.helped
    assert again.counted_by == ("metrics" if options["metrics"] else "usage")
    assert again.hit_share == pytest.approx(0.95, abs=0.05)  # all complete blocks
    assert again.reset_answer == "POST /reset_prefix_cache: 404"


@pytest.mark.slow
def test_texts_are_marked_from_the_second_load_on(
    start: Callable[..., CachingServer], tmp_path: Path
) -> None:
    server = start(dev_mode=False)
    runs = [measured(server, tmp_path, rate, texts()) for rate in (100.0, 200.0)]
    accounts = [CacheAccount.of(run.info) for run in runs]
    assert [account is not None and account.helped for account in accounts] == [False, True]
    conditions = Conditions.of(runs[0].info)
    assert conditions is not None
    assert conditions.texts == 8


@pytest.mark.slow
def test_prompts_with_a_common_beginning_are_not_marked(
    start: Callable[..., CachingServer], tmp_path: Path
) -> None:
    server = start()
    pairs = [TextPair("", f"You are a helpful assistant. Question {i}?", "yes") for i in range(20)]
    dataset = Texts("shared", pairs, lambda some: [len(text) for text in some], lambda n, m: True)
    account = CacheAccount.of(measured(server, tmp_path, dataset=dataset).info)
    assert account is not None
    assert account.hit_share is not None
    assert account.hit_share > 0.5
    assert not account.helped


def test_sglang_is_known_by_the_owner_or_by_its_metrics(start: Callable[..., CachingServer]) -> None:
    server = start()
    server.name = "sglang"
    assert reset_cache(server.url, "sglang") == Reset(True, "POST /flush_cache: 200")
    assert reset_cache(server.url, "organization-owner").done
    assert server.resets == ["/flush_cache"] * 2
    assert cache_counters(server.url) == {"hits": 0.0, "looked_up": 0.0, "preemptions": 0.0}


def test_a_server_of_another_kind_is_not_asked(start: Callable[..., CachingServer]) -> None:
    server = start(metrics=False)
    assert reset_cache(server.url, "llamacpp") == Reset(False)
    assert server.resets == []
    assert cache_counters(server.url) is None
    assert reset_cache("http://127.0.0.1:9", "vllm") == Reset(False, "POST /reset_prefix_cache: no answer")


@pytest.mark.slow
def test_prompt_tokens_that_differ_from_those_sent_are_seen(
    start: Callable[..., CachingServer], tmp_path: Path
) -> None:
    server = start()
    server.counts = lambda tokens: tokens + 1
    more = measured(server, tmp_path)
    conditions = Conditions.of(more.info)
    assert conditions is not None
    assert (conditions.miscounted, conditions.counted_tokens - conditions.sent_tokens) == (8, 8)
    server.counts = lambda tokens: min(tokens, 30)  # it cuts long prompts
    cut = measured(server, tmp_path)
    errors = [record.error for record in cut.records if record.error]
    assert errors
    assert all("token ids, the server counted 30" in error for error in errors)
