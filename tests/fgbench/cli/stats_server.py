"""A server that only answers /stats or /metrics; its counters grow with its uptime.

Arguments: PORT KIND.
"""

from __future__ import annotations

import sys
import time

from aiohttp import web

STARTED = time.monotonic()


async def stats(request: web.Request) -> web.Response:
    uptime = time.monotonic() - STARTED
    return web.Response(
        content_type="application/json",
        text=f"""{{
            "running": 2, "max_batch_size": 4, "waiting": 5, "swapped": 1,
            "num_device_blocks": 40, "free_device_blocks": 10, "num_host_blocks": 8, "free_host_blocks": 8,
            "generated_tokens": {100 * uptime}, "prompt_tokens": {30 * uptime}, "finished": {4 * uptime},
            "aborted": 0, "preemptions": {uptime}, "offloaded_blocks": {3 * uptime}, "uploaded_blocks": 0,
            "recomputed_tokens": 0, "work_steps": {2 * uptime}, "model_seconds": {0.2 * uptime},
            "levels": [{{"name": "Q1", "requests": 4, "quantum": 0.51}},
                       {{"name": "Q2", "requests": 4, "quantum": 1.02}}],
            "policy": "sj-mlfq", "model": "tiny", "uptime_seconds": {uptime}, "block_bytes": 4096,
            "a number that is none": NaN
        }}""",
    )


async def metrics(request: web.Request) -> web.Response:
    tokens = 1000 * (time.monotonic() - STARTED)
    return web.Response(
        text=f"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="org/model"}} 7.0
vllm:num_requests_waiting{{engine="0",model_name="org/model"}} 2.0
vllm:kv_cache_usage_perc{{engine="0",model_name="org/model"}} 0.25
vllm:generation_tokens_total{{engine="0",model_name="org/model"}} {tokens}
"""
    )


async def loading(request: web.Request) -> web.Response:
    return web.json_response({"error": {"message": "loading the model"}}, status=503)


def main() -> None:
    port, kind = int(sys.argv[1]), sys.argv[2]
    app = web.Application()
    if kind == "fastgen":
        app.router.add_get("/stats", stats)
    elif kind == "vllm":
        app.router.add_get("/metrics", metrics)
    elif kind == "loading":
        app.router.add_get("/stats", loading)
    web.run_app(app, host="127.0.0.1", port=port, print=lambda *_: print("ready", flush=True))


if __name__ == "__main__":
    main()
