"""The outermost middleware: checks each request's access, counts it by its outcome, logs it when it ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, get_args

from aiohttp import hdrs, web

from fgengine.server.access import Rules, type_refusal
from fgengine.server.errors import ErrorResponse, answer_to
from fgengine.server.generation import Service
from fgengine.server.handlers import Handler
from fgengine.server.logs import Outcome, RequestLog
from fgengine.server.metrics import Metrics
from fgengine.server.options import ServerOptions
from fgengine.server.routes import HEALTH
from fgengine.server.streams import StreamedResponse

REQUEST_ID = "X-Request-Id"
SITE, MODE = "Sec-Fetch-Site", "Sec-Fetch-Mode"
CLIENT_LIMIT = "client_limit"
"""Error code for a client that has too many open requests."""
COUNTERS: dict[Outcome, str] = {outcome: f"requests_{outcome}" for outcome in get_args(Outcome)}
MAX_KNOWN = 256
"""Number of Host headers that are remembered as allowed."""


class Gate:
    """Refuses requests by the server's rules."""

    def __init__(self, options: ServerOptions) -> None:
        self.rules = Rules.of(options.host, options.keys, options.allowed_names)
        self._known_hosts: set[str | None] = {None}

    def refusal(self, request: web.Request) -> web.Response | None:
        """Return the answer to a request that has no access; None if it has."""
        rules, headers = self.rules, request.headers
        host, origin, site = headers.get(hdrs.HOST), headers.get(hdrs.ORIGIN), headers.get(SITE)
        found = None
        if host not in self._known_hosts:
            found = rules.host_refusal(host)
            if found is None and len(self._known_hosts) < MAX_KNOWN:
                self._known_hosts.add(host)
        if found is None and (origin is not None or site is not None):
            found = rules.page_refusal(request.method, host, origin, site, headers.get(MODE))
        if found is None and rules.digests:
            found = rules.key_refusal(headers.get(hdrs.AUTHORIZATION))
        if found is None and request.method == hdrs.METH_POST:
            found = type_refusal(headers.get(hdrs.CONTENT_TYPE))
        if found is None or request.path in HEALTH:
            return None
        answer = ErrorResponse(found.status, found.message, "invalid_request_error", code=found.code)
        if found.status == 401:
            answer.headers["WWW-Authenticate"] = "Bearer"
        return answer


def watch_requests(service: Service, gate: Gate, log: RequestLog, metrics: Metrics) -> Any:
    """Return the middleware. It must be the outermost one, to see every outcome."""
    counters = service.counters

    @web.middleware
    async def watch(request: web.Request, handler: Handler) -> web.StreamResponse:
        entry = log.begin(request.headers.get(REQUEST_ID))
        posted = request.method == hdrs.METH_POST
        if posted:
            counters.requests_received += 1
            counters.requests_in_flight += 1
        try:
            response = gate.refusal(request) or await handler(request)
        except (asyncio.CancelledError, ConnectionError):  # the client has left
            if posted:
                counters.requests_aborted += 1
            metrics.count(request, None)
            log.end(entry, request, None, "aborted")
            raise
        except Exception as error:
            response = answer_to(error, request)
        finally:
            if posted:
                counters.requests_in_flight -= 1
        outcome, reason = outcome_of(response)
        if posted:
            name = COUNTERS[outcome]
            setattr(counters, name, getattr(counters, name) + 1)
        if not response.prepared:  # a stream has it already
            response.headers[REQUEST_ID] = entry.id
        metrics.count(request, response.status)
        log.end(entry, request, response.status, outcome, reason)
        return response

    return watch


def outcome_of(response: web.StreamResponse) -> tuple[Outcome, str]:
    """Return the outcome of an answered request, and why it did not finish (empty: not known)."""
    if isinstance(response, ErrorResponse):
        return response.outcome, response.message
    if response.status >= 500:
        return "failed", ""
    if isinstance(response, StreamedResponse) and response.failure is not None:
        return "failed", response.failure
    return "finished", ""


def limit_clients(most: int, rules: Rules) -> Any:
    """Return the middleware that answers 429 to a client which has ``most`` open POST requests already.

    A client is a key if there are several, else an address.
    """
    requests_of: Counter[Any] = Counter()

    @web.middleware
    async def limit(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method != hdrs.METH_POST:
            return await handler(request)
        by_key = len(rules.digests) > 1
        client = rules.key_number(request.headers.get(hdrs.AUTHORIZATION)) if by_key else request.remote
        if requests_of[client] >= most:
            message = (
                f"this client has {most} open requests, as many as it may: wait until one of them has ended"
            )
            wait = {"Retry-After": "1"}
            return ErrorResponse(429, message, "rate_limit_error", None, CLIENT_LIMIT, wait, "rejected")
        requests_of[client] += 1
        try:
            return await handler(request)
        finally:
            requests_of[client] -= 1
            if not requests_of[client]:
                del requests_of[client]

    return limit
