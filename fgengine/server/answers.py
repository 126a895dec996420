"""Code that all routes share: reading prompts, error answers, streamed answers, token usage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web

from fgengine.clock import WallClock
from fgengine.scheduling.refusal import Busy, QueueFull, RequestRefused
from fgengine.server.client import EngineError
from fgengine.server.connections import Refusal
from fgengine.server.encoding import EncodingError
from fgengine.server.generation import Service
from fgengine.server.logs import current_entry
from fgengine.server.options import ServerOptions
from fgengine.server.schemas import BadRequestError, Body, read_body
from fgengine.text import TextError

SERVICE = web.AppKey("service", Service)
OPTIONS = web.AppKey("options", ServerOptions)
LARGE_BODY = 64 * 1024
"""Bytes from which bodies are parsed one at a time, with a pause for other requests in between."""

log = logging.getLogger("fgengine.server")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


QUEUE_FULL, QUEUE_TIMEOUT = "queue_full", "queue_timeout"
"""Error codes of a busy server."""


def error_body(message: str, kind: str, field: str | None = None, code: str | None = None) -> bytes:
    """Return the JSON body of an error, in OpenAI's format."""
    message = message.encode("utf-8", "backslashreplace").decode()  # it may quote bytes that are not UTF-8
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": field, "code": code}})


class ErrorResponse(web.Response):
    """An error answer in OpenAI's format."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str,
        field: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        body = error_body(message, kind, field, code)
        super().__init__(status=status, body=body, content_type="application/json", headers=headers)
        self.message = message
        """Why the request was refused or failed."""


def error_response(
    status: int, message: str, kind: str, field: str | None = None, code: str | None = None
) -> web.Response:
    """Return an error answer. A 503 has a Retry-After header."""
    return ErrorResponse(status, message, kind, field, code, {"Retry-After": "1"} if status == 503 else None)


def busy_response(error: Busy) -> web.Response:
    """Return 429 if the queue was full, or 503 if the request waited in it for too long, with Retry-After."""
    message = f"{error}; try again in {error.whole_seconds} s"
    headers = {"Retry-After": str(error.whole_seconds)}
    if isinstance(error, QueueFull):
        return BusyResponse(429, message, "rate_limit_error", code=QUEUE_FULL, headers=headers)
    return BusyResponse(503, message, "service_unavailable", code=QUEUE_TIMEOUT, headers=headers)


class BusyResponse(ErrorResponse):
    """An answer of a busy server: neither the server nor the request has failed."""


def answer_to(error: Exception, request: web.BaseRequest) -> web.Response:
    """Return the answer to a request whose handler raised ``error``, in OpenAI's format.

    This is for errors before a stream has started. ``Stream`` reports later ones.
    """
    if isinstance(error, Busy):
        return busy_response(error)
    if isinstance(error, BadRequestError):
        return error_response(400, str(error), "invalid_request_error", error.field, error.code)
    if isinstance(error, TextError | RequestRefused):
        return error_response(400, str(error), "invalid_request_error")
    if isinstance(error, UnknownModelError):
        return error_response(404, str(error), "invalid_request_error", "model", "model_not_found")
    if isinstance(error, EngineError):
        return error_response(503, str(error), "service_unavailable")
    if isinstance(error, Refusal):
        kind = "service_unavailable" if error.status == 503 else "invalid_request_error"
        return error_response(error.status, str(error), kind)
    if isinstance(error, BodyTooLarge):
        return error_response(413, str(error), "invalid_request_error")
    if isinstance(error, EncodingError):
        return error_response(500, str(error), "internal_error")
    if isinstance(error, web.RequestPayloadError):
        message = f"the body cannot be read: {error}; its Content-Encoding may be wrong"
        return error_response(400, message, "invalid_request_error")
    if isinstance(error, web.HTTPException):
        message = f"{request.method} {request.path[:200]}: {error.reason}"
        response = error_response(error.status, message, "invalid_request_error")
        if "Allow" in error.headers:  # of a 405
            response.headers["Allow"] = error.headers["Allow"]
        return response
    entry = current_entry()
    id = "" if entry is None else f" for request {entry.id}"
    log.error("%s %s failed%s", request.method, request.path[:200], id, exc_info=error)
    return error_response(500, f"the server has failed: see the server's log{id}", "internal_error")


async def read_posted(request: web.Request, kind: type[Body]) -> tuple[Body, float]:
    """Return the checked body, and the time when it was read (engine's clock). Raises BadRequestError."""
    service = request.app[SERVICE]
    raw = await _read(request, service.encoder.max_body_bytes)
    arrival = WallClock().now()
    if len(raw) < LARGE_BODY:
        return read_body(raw, kind, _log_once), arrival
    async with service.parsing:
        await asyncio.sleep(0)
        return read_body(raw, kind, _log_once), arrival


async def _read(request: web.Request, limit: int) -> bytes:
    """Return the body. Raises BodyTooLarge; before anything is read if its length is known."""
    body = bytearray()
    if (request.content_length or 0) <= limit:
        async for piece in request.content.iter_any():
            body += piece
            if len(body) > limit:
                break
        else:
            return bytes(body)
    raise BodyTooLarge(f"the body is larger than {limit} bytes, more than this model's prompts need")


class BodyTooLarge(ValueError):
    """A body is larger than any prompt for the model."""


class UnknownModelError(ValueError):
    """A request wants a model that the server does not have."""


_ignored: set[str] = set()
"""Fields that the log has named."""
MAX_IGNORED = 100
"""Number of names after which no more are logged, because a client can send any number."""


def _log_once(name: str) -> None:
    if name not in _ignored and len(_ignored) < MAX_IGNORED:
        _ignored.add(name)
        log.warning("requests have the field %r, which this server does not know and ignores", name[:64])


def usage(prompt_tokens: int, output_tokens: int) -> dict[str, int]:
    """Return the numbers of tokens, in OpenAI's format."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
    }


class StreamedResponse(web.StreamResponse):
    """A streamed answer that remembers whether it failed."""

    failure: str | None = None
    """The error with which it ended after its status had been sent."""


class Stream:
    """A streamed answer. If the engine breaks during it, the last message is the error."""

    def __init__(self, request: web.Request, content_type: str, message: Callable[[bytes], bytes]) -> None:
        """``message`` turns one JSON body into one message of the stream."""
        self._request = request
        self._wrap = message
        headers = {"Content-Type": content_type, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        if (entry := current_entry()) is not None:
            headers["X-Request-Id"] = entry.id
        self._response = StreamedResponse(headers=headers)

    async def open(self) -> None:
        """Send the headers now. Otherwise they are sent with the first message."""
        await self._response.prepare(self._request)

    async def write(self, bodies: list[bytes]) -> None:
        """Send one message for each body, all in one write."""
        if not self._response.prepared:
            await self.open()
        await self._response.write(b"".join(map(self._wrap, bodies)))

    async def close(self, last: bytes = b"") -> web.StreamResponse:
        """Send ``last`` as it is and end the stream."""
        await self._response.write_eof(last)
        return self._response

    async def fail(self, error: EngineError | Busy) -> web.StreamResponse:
        """End the stream with the error. Raises it if no headers were sent, so that it sets the status."""
        if not self._response.prepared:
            raise error
        self._response.failure = str(error)
        body = answer_to(error, self._request).body
        assert isinstance(body, bytes)
        await self.write([body])
        return await self.close()
