"""How fast the load generator is before it becomes the limit: its lag and throughput against a server that
only streams. Server and client are processes of their own. Prints a table, then JSON.

    python bench/client.py [--rates 50,200,inf] [--requests 1000] [--tokens 64] [--gap 0.01]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import time
from typing import Any

from aiohttp import web

from fgbench.backends.attached import Attached
from fgbench.client.endpoints import ENDPOINTS
from fgbench.client.load import Target, run_async, run_load
from fgbench.client.record import RequestRecord
from fgbench.metrics.summary import summarize
from fgbench.workload.build import build_workload
from fgbench.workload.datasets import Synthetic

PROMPT_TOKENS = 64


def measure(url: str, rate: float, requests: int, tokens: int) -> dict[str, Any]:
    dataset = Synthetic((PROMPT_TOKENS, PROMPT_TOKENS), (tokens, tokens))
    workload = build_workload(dataset, rate=rate, num_prompts=requests)
    records: list[RequestRecord] = []
    begun_cpu, begun = time.process_time(), time.perf_counter()
    target = Target(url, "null", ENDPOINTS["completions"])
    run_async(run_load(workload.requests, target, records.append))
    cpu, wall = time.process_time() - begun_cpu, time.perf_counter() - begun
    summary = summarize(records, offered_rate=rate)
    assert summary.ok == requests, summary.errors
    assert summary.lag is not None
    assert summary.ttft_from_sent is not None
    return {
        "rate": rate if math.isfinite(rate) else "inf",
        "requests": requests,
        "tokens_per_second": round(summary.output_token_throughput),
        "lag_p50_ms": round(summary.lag.p50 * 1e3, 2),
        "lag_p99_ms": round(summary.lag.p99 * 1e3, 2),
        "ttft_from_sent_p99_ms": round(summary.ttft_from_sent.p99 * 1e3, 2),
        "cpu_us_per_token": round(cpu / (requests * tokens) * 1e6, 2),
        "cpu_share": round(cpu / wall, 3),
    }


async def serve(gap: float) -> None:
    """A token every ``gap`` seconds to everybody (as an engine's steps come), or as fast as it goes at 0."""
    token = b'data: {"choices": [{"index": 0, "text": "x", "finish_reason": null}]}\n\n'

    async def completions(request: web.Request) -> web.StreamResponse:
        count = (await request.json())["max_tokens"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(count):
            await response.write(token)
            await asyncio.sleep(gap - time.monotonic() % gap if gap else 0)
        usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": count}
        await response.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    async def ready(request: web.Request) -> web.Response:
        return web.json_response({"status": "ready"})

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/completions", completions)
    app.router.add_get("/health", ready)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(runner.addresses[0][1], flush=True)
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", default="20,100,300,inf", help="requests per second, comma between")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=64, help="output tokens of each request")
    parser.add_argument("--gap", type=float, default=0.01, help="seconds between a request's tokens")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        run_async(serve(options.gap))
        return

    from rich.console import Console
    from rich.table import Table

    command = [sys.executable, __file__, "--serve", "--gap", str(options.gap)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        assert Attached(url).alive()
        rates = [float(rate) for rate in options.rates.split(",")]
        rows = [measure(url, rate, options.requests, options.tokens) for rate in rates]
    finally:
        server.kill()
        server.wait()
    table = Table(
        title=f"client against a null server: {options.tokens} tokens, {options.gap * 1e3:g} ms apart"
    )
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(stderr=True).print(table)
    print(json.dumps({"bench": "client", "tokens": options.tokens, "gap": options.gap, "rows": rows}))


if __name__ == "__main__":
    main()
