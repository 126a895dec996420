"""A fake server for /v1/completions and /generate that can misbehave. It runs in a separate thread."""

import asyncio
import json
import threading
import time
from pathlib import Path

import pytest
from aiohttp import web


class FakeServer:
    """A server that sends a token every ``gap`` seconds. ``misbehave`` maps max_tokens to a kind of fault."""

    def __init__(self):
        self.gap = 0.0
        self.misbehave = {}
        self.bodies = []
        self.arrivals = []
        self.dropped = 0
        self.models = [{"id": "fake", "vocab_size": 512, "max_model_len": 2048}]
        self.loading = 0
        self.stats = None
        self.asked = 0
        self.vllm = None
        """A function that returns the running and waiting requests. If set, /metrics answers like vLLM."""
        self.required = {}
        """Required headers; requests without them get a 401."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._ready = threading.Event()

    def start(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def stop(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self):
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=2**24, middlewares=[self._authorized])
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/stats", self._stats)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/generate", self._generate)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    @web.middleware
    async def _authorized(self, request, handler):
        if any(request.headers.get(name) != value for name, value in self.required.items()):
            return web.json_response({"error": {"message": "no key"}}, status=401)
        return await handler(request)

    async def _health(self, request):
        if self.loading > 0:
            self.loading -= 1
            return web.json_response({"status": "starting", "message": "loading the model"}, status=503)
        return web.json_response({"status": "ready"})

    async def _stats(self, request):
        self.asked += 1
        return web.json_response(self.stats) if self.stats is not None else web.Response(status=404)

    async def _metrics(self, request):
        if self.vllm is None:
            return web.Response(status=404)
        counts = self.vllm()
        if counts is None:  # the server is too busy to answer
            await asyncio.sleep(60)
        return web.Response(text=vllm_metrics(*counts))

    async def _models(self, request):
        return web.json_response({"data": self.models})

    async def _completions(self, request):
        body = await request.json()
        self.bodies.append(body)
        self.arrivals.append(time.perf_counter())
        count = body["max_tokens"]
        fault = self.misbehave.get(count, "")
        if fault == "refuse":
            return web.json_response({"error": {"message": "too\nlong"}}, status=400)
        if fault == "reject":
            return web.json_response({"error": {"message": "too busy"}}, status=429)
        if fault == "queue timeout":
            error = {"message": "waited 5 s", "type": "service_unavailable", "code": "queue_timeout"}
            return web.json_response({"error": error}, status=503, headers={"Retry-After": "3"})
        if fault == "unavailable":
            return web.json_response({"error": {"message": "starting", "code": None}}, status=503)
        if fault == "crash":
            return web.Response(status=500, text="Internal Server Error")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        try:
            await response.prepare(request)
            if fault == "hang":
                await asyncio.sleep(60)
            if fault == "garbage":
                await response.write(b"data: {not json\n\n")
                return response
            for i in range(count):
                if i:
                    await asyncio.sleep(self.gap)
                if fault == "cut" and i == 2:
                    request.transport.abort()
                    return response
                if fault == "error midway" and i == 2:
                    await response.write(b'data: {"error": {"message": "the engine broke"}}\n\n')
                    return response
                await response.write(_event({"choices": [{"text": "x", "finish_reason": None}]}))
            if fault == "no usage":
                await response.write(b"data: [DONE]\n\n")
                return response
            reported = count - 1 if fault == "short" else count
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": reported}
            await response.write(_event({"choices": [], "usage": usage, "fgengine": {"queued": 0.5}}))
            if fault != "no marker":
                await response.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            self.dropped += 1
            raise
        return response

    async def _generate(self, request):
        body = await request.json()
        self.bodies.append(body)
        response = web.StreamResponse()
        await response.prepare(request)
        for i in range(body["max_tokens"]):
            await response.write(json.dumps({"text": ["x" * (i + 1)]}).encode() + b"\0")
        return response


def vllm_metrics(running, waiting):
    """Return the text of /metrics in vLLM 0.32, with fewer series."""
    page = (Path(__file__).parent / "vllm-0.32-metrics.txt").read_text(encoding="utf-8")
    return page.replace("RUNNING", f"{running:.1f}").replace("WAITING", f"{waiting:.1f}")


def _event(data):
    return b"data: " + json.dumps(data).encode() + b"\n\n"


@pytest.fixture
def fake_server():
    server = FakeServer().start()
    yield server
    server.stop()
