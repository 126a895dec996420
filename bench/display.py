"""Measures how much the live panel disturbs a load.

    python bench/display.py [--rate 100] [--requests 1000] [--tokens 64] [--rounds 3]

It measures the client's lag and the errors in token times, alternately with and without the live panel. The
server only streams fixed answers; the panel also asks for its /stats. Then it measures the time of one frame
and of ``Engine.stats``. Prints a table, then JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

from aiohttp import web
from rich.console import Console
from rich.table import Table

from fgbench.backends.backend import Display
from fgbench.client.endpoints import ENDPOINTS
from fgbench.client.sending import Target, run_async, run_load
from fgbench.client.state import LoadState
from fgbench.live.display import Live, Quiet
from fgbench.live.load_panel import LoadView
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.statistics import Distribution
from fgbench.metrics.summary import summarize
from fgbench.workload.build import build_workload
from fgbench.workload.datasets import Synthetic
from fgbench.workload.lengths import Between
from fgengine.clock import VirtualClock
from fgengine.cost import CostModel
from fgengine.engine import Engine
from fgengine.kv.manager import KVManager
from fgengine.request import SamplingParams
from fgengine.scheduling.policy import PolicyContext, make_policy
from fgengine.scheduling.scheduler import Limits, Scheduler
from fgengine.simulation.copying import SimulatedCopyEngine
from fgengine.simulation.runner import SimulatedRunner

GAP = 0.01
"""Seconds between two tokens of a request, like the steps of an engine."""
STATS = {"num_device_blocks": 400, "free_device_blocks": 50, "work_steps": 1, "running": 16, "waiting": 3}
COST = CostModel(step=0.01, decode_request=0.001, prefill_token=0.0005)


def engine_with(requests: int) -> Engine:
    clock = VirtualClock()
    scheduler = Scheduler(
        make_policy("sj-mlfq", PolicyContext(COST)),
        KVManager(4000, 4000, 16),
        Limits(max_tokens_per_batch=2048, max_model_len=2048),
        cost=COST,
    )
    engine = Engine(scheduler, SimulatedRunner(COST, clock), SimulatedCopyEngine(clock, 1, 1e9), clock)
    for i in range(requests):
        engine.add(str(i), [0] * (1 + i % 300), SamplingParams(max_tokens=100))
    for _ in range(20):
        engine.step()
    return engine


def micros(work: Any, times: int = 1000) -> float:
    start = time.perf_counter()
    for _ in range(times):
        work()
    return round((time.perf_counter() - start) / times * 1e6, 1)


async def serve() -> None:
    """Serve one token every ``GAP`` seconds, to all clients at the same time, like the steps of an engine."""
    token = b'data: {"choices": [{"index": 0, "text": "x", "finish_reason": null}]}\n\n'

    async def completions(request: web.Request) -> web.StreamResponse:
        count = (await request.json())["max_tokens"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(count):
            now = time.monotonic()
            await asyncio.sleep((math.floor(now / GAP + 0.5) + 1) * GAP - now)  # at most one token per step
            await response.write(token)
        usage = {"prompt_tokens": 64, "completion_tokens": count}
        end = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n"
        await response.write(end)
        return response

    async def stats(request: web.Request) -> web.Response:
        return web.json_response(STATS | {"uptime_seconds": time.monotonic()})

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/completions", completions)
    app.router.add_get("/stats", stats)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(runner.addresses[0][1], flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(0.5)


def measure(url: str, display: Display, rate: float, requests: int, tokens: int) -> dict[str, float]:
    dataset = Synthetic(Between(64, 64), Between(tokens, tokens))
    workload = build_workload(dataset, rate=rate, num_prompts=requests)
    records: list[RequestRecord] = []
    state = LoadState.of(workload.requests)
    cpu = time.process_time()
    with display.load("null", state, url):
        target = Target(url, "null", ENDPOINTS["completions"])
        run_async(run_load(workload.requests, target, records.append, state=state))
    cpu = time.process_time() - cpu
    summary = summarize(records, offered_rate=rate)
    assert summary.ok == requests, summary.errors
    lag = summary.distributions["lag"]
    gaps = (b - a for record in records for a, b in pairwise(record.token_times))
    gap_error = Distribution.of(abs(gap - GAP * max(1, round(gap / GAP))) for gap in gaps)
    assert gap_error is not None
    return {
        "lag_p50_ms": lag.p50 * 1e3,
        "lag_p99_ms": lag.p99 * 1e3,
        "lag_max_ms": lag.max * 1e3,
        "gap_error_p50_ms": gap_error.p50 * 1e3,
        "gap_error_p90_ms": gap_error.p90 * 1e3,
        "cpu_share": cpu / summary.duration_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64, help="output tokens of each request")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        run_async(serve())
        return

    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    rows: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        with contextlib.closing(open(os.devnull, "w")) as devnull:
            terminal = Console(file=devnull, force_terminal=True, width=100, height=40)
            displays: dict[str, Display] = {"without": Quiet(), "with": Live(terminal)}
            for _ in range(options.rounds):
                for name, display in displays.items():
                    row = measure(url, display, options.rate, options.requests, options.tokens)
                    rows[name].append(row)
            view = LoadView("null", LoadState(1000, 100.0))
            frame = micros(lambda: terminal.print(view.draw(0.0)), 100)
    finally:
        server.kill()
        server.wait()
    stats = {str(n): micros(engine_with(n).stats) for n in (0, 10, 10_000)}
    table = Table(
        title=f"{options.rate:g} requests/s of {options.tokens} tokens; medians of {options.rounds}"
    )
    table.add_column("panel")
    for name in rows["with"][0]:
        table.add_column(name.replace("_", " "), justify="right")
    medians = {
        name: {key: round(statistics.median(row[key] for row in found), 3) for key in found[0]}
        for name, found in rows.items()
    }
    for name, found in medians.items():
        table.add_row(name, *map(str, found.values()))
    console = Console(stderr=True)
    console.print(table)
    console.print(f"one frame: {frame} us; Engine.stats by number of requests, us: {stats}")
    print(json.dumps({"bench": "display", "rows": rows, "frame_us": frame, "stats_us": stats}))


if __name__ == "__main__":
    main()
