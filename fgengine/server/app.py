"""The HTTP application: its routes, and the small ones among their handlers."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from importlib import metadata

from aiohttp import web

from fgengine.server import legacy, models, openai, openapi, tokenizing
from fgengine.server.gate import Gate, limit_clients, watch_requests
from fgengine.server.generation import Service
from fgengine.server.handlers import OPTIONS, SERVICE
from fgengine.server.http_connection import note_answer, refuse_extra
from fgengine.server.http_errors import refuse_forms
from fgengine.server.logs import RequestLog
from fgengine.server.metrics import Metrics
from fgengine.server.options import ServerOptions
from fgengine.server.routes import LIVE, METRICS, READY, STATS

DISTRIBUTION = "fgbench"
"""The package that contains the server."""
DEFAULTS = ServerOptions()


def make_app(service: Service, options: ServerOptions = DEFAULTS) -> web.Application:
    """Return the HTTP application for one engine.

    Run it with ``handler_cancellation=True``. Otherwise, requests of disconnected clients are not aborted.
    """
    gate, log = Gate(options), RequestLog(service.instance)
    metrics = Metrics(service, next(iter(options.model_names), None))
    middlewares = [watch_requests(service, gate, log, metrics), refuse_extra, refuse_forms]
    if options.max_requests_per_client is not None:
        middlewares.append(limit_clients(options.max_requests_per_client, gate.rules))
    app = web.Application(middlewares=middlewares)
    app.on_response_prepare.append(note_answer)
    app[SERVICE] = service
    app[OPTIONS] = options
    app.cleanup_ctx.extend([log.lifetime, metrics.watch_event_loop])
    app.router.add_get("/openapi.json", openapi.serve)
    for path in READY:
        app.router.add_get(path, health)
    app.router.add_get(LIVE, live)
    app.router.add_get(STATS, stats)
    app.router.add_get(METRICS, metrics.serve)
    app.router.add_get("/version", version)
    app.router.add_get("/server_info", server_info)
    app.router.add_get("/v1/models", models.models)
    app.router.add_get("/v1/models/{name:.+}", models.model)  # a name may be a path
    app.router.add_post("/v1/completions", openai.completions)
    app.router.add_post("/v1/chat/completions", openai.chat_completions)
    app.router.add_post("/tokenize", tokenizing.tokenize)
    app.router.add_post("/detokenize", tokenizing.detokenize)
    app.router.add_post("/generate", legacy.generate)
    return app


async def health(request: web.Request) -> web.Response:
    """GET /health and /health/ready: 200 if requests are served, else 503. ``message`` says why."""
    service = request.app[SERVICE]
    status, message = service.engine.state, service.engine.message
    if service.draining:
        return web.json_response({"status": "draining", "message": "the server is shutting down"}, status=503)
    return web.json_response({"status": status, "message": message}, status=200 if status == "ready" else 503)


async def live(request: web.Request) -> web.Response:
    """GET /health/live: 200 as long as the server's process answers, whatever its engine does."""
    return web.json_response({"status": "live"})


async def stats(request: web.Request) -> web.Response:
    """GET /stats: the engine's counters, read between two steps, and the server's counters."""
    return web.json_response(await request.app[SERVICE].stats())


async def version(request: web.Request) -> web.Response:
    """GET /version: the version of the package."""
    return web.json_response({"version": metadata.version(DISTRIBUTION)})


async def server_info(request: web.Request) -> web.Response:
    """GET /server_info: the engine's settings by name, so that a client can record what it measured."""
    config = request.app[SERVICE].config
    settings = {} if config is None else asdict(config)
    return web.json_response(
        {"version": metadata.version(DISTRIBUTION), "settings": settings},
        dumps=functools.partial(json.dumps, default=str),
    )
