"""What the routes share in reading prompts and writing answers: errors, streams, usage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from fgengine.clock import WallClock
from fgengine.scheduling.refusal import Busy, QueueFull, RequestRefused
from fgengine.server.client import EngineError
from fgengine.server.generation import Generation, Service
from fgengine.server.schemas import MAX_BODY_BYTES, BadRequestError, Body, read_body
from fgengine.text import TextCodec, TextError

SERVICE = web.AppKey("service", Service)
LONG_TEXT = 20_000
"""Characters from which on a prompt is tokenized in a thread, so that other streams do not stutter."""

log = logging.getLogger("fgengine.server")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


QUEUE_FULL, QUEUE_TIMEOUT = "queue_full", "queue_timeout"
"""The codes of errors that say that the server has too much to do."""


def error_body(message: str, kind: str, field: str | None = None, code: str | None = None) -> bytes:
    """An error as OpenAI shapes it."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": field, "code": code}})


def error_response(status: int, message: str, kind: str, field: str | None = None) -> web.Response:
    headers = {"Retry-After": "1"} if status == 503 else None
    return web.Response(
        status=status, body=error_body(message, kind, field), content_type="application/json", headers=headers
    )


def busy_response(error: Busy) -> web.Response:
    """429 where the queue was full, 503 where a request waited in it for too long; both with Retry-After."""
    message = f"{error}; try again in {error.whole_seconds} s"
    if isinstance(error, QueueFull):
        status, body = 429, error_body(message, "rate_limit_error", code=QUEUE_FULL)
    else:
        status, body = 503, error_body(message, "service_unavailable", code=QUEUE_TIMEOUT)
    headers = {"Retry-After": str(error.whole_seconds)}
    return BusyResponse(status=status, body=body, content_type="application/json", headers=headers)


class BusyResponse(web.Response):
    """The server has too much to do; nothing is wrong with it or with the request."""


@web.middleware
async def count_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep the server's counters of what is posted; outermost, so that it sees every outcome."""
    if request.method != "POST":
        return await handler(request)
    counters = request.app[SERVICE].counters
    counters.requests_received += 1
    counters.requests_in_flight += 1
    try:
        response = await handler(request)
    except BaseException:  # the client has gone: cancelled, or a write failed
        counters.requests_aborted += 1
        raise
    finally:
        counters.requests_in_flight -= 1
    if isinstance(response, BusyResponse):
        if response.status == 429:
            counters.requests_rejected += 1
        else:
            counters.requests_timed_out += 1
    elif response.status >= 500 or (isinstance(response, StreamedResponse) and response.failed):
        counters.requests_failed += 1
    elif response.status >= 400:
        counters.requests_refused += 1
    else:
        counters.requests_finished += 1
    return response


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as an OpenAI-shaped JSON body with the status that fits.

    Only for errors before a stream has begun; ``Stream`` tells those that come later.
    """
    try:
        return await handler(request)
    except Busy as error:
        return busy_response(error)
    except (BadRequestError, TextError, RequestRefused) as error:
        return error_response(400, str(error), "invalid_request_error", getattr(error, "field", None))
    except EngineError as error:
        return error_response(503, str(error), "service_unavailable")
    except web.HTTPRequestEntityTooLarge:
        message = f"the body is larger than {MAX_BODY_BYTES} bytes"
        return error_response(413, message, "invalid_request_error")
    except web.HTTPException as error:
        message = f"{request.method} {request.path}: {error.reason}"
        return error_response(error.status, message, "invalid_request_error")
    except ConnectionError:
        raise  # the client has gone; aiohttp knows what to do
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return error_response(500, "the server made a mistake; its log says more", "internal_error")


async def read_posted(request: web.Request, kind: type[Body]) -> tuple[Body, float]:
    """The body, checked, and when it had been read, on the engine's clock. Raises BadRequestError."""
    raw = await request.read()
    arrival = WallClock().now()
    return read_body(raw, kind), arrival


async def prompt_ids(prompt: str | list[int], codec: TextCodec) -> list[int]:
    """Token ids of a prompt, which may be text."""
    if not isinstance(prompt, str):
        return prompt
    if len(prompt) < LONG_TEXT:
        return codec.encode(prompt)
    return await asyncio.to_thread(codec.encode, prompt)


def usage(prompt_tokens: int, generation: Generation) -> dict[str, int]:
    output = generation.output_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output,
        "total_tokens": prompt_tokens + output,
    }


class StreamedResponse(web.StreamResponse):
    failed = False
    """It ended with an error, when its status had gone out already."""


class Stream:
    """A streamed response. An engine that breaks down in the middle is told as a last message."""

    def __init__(self, request: web.Request, content_type: str, message: Callable[[bytes], bytes]) -> None:
        """``message`` wraps one JSON body into one message of the stream."""
        self._request = request
        self._wrap = message
        self._response = StreamedResponse(
            headers={"Content-Type": content_type, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )

    async def open(self) -> None:
        """Send the headers. Without it they go with the first message."""
        await self._response.prepare(self._request)

    async def write(self, bodies: list[bytes]) -> None:
        """One message each, in one piece over the network."""
        if not self._response.prepared:
            await self.open()
        await self._response.write(b"".join(map(self._wrap, bodies)))

    async def close(self, last: bytes = b"") -> web.StreamResponse:
        await self._response.write_eof(last)
        return self._response

    async def fail(self, error: EngineError) -> web.StreamResponse:
        """End the stream with the error. Raises it where no headers are out yet: then it gets a status."""
        if not self._response.prepared:
            raise error
        self._response.failed = True
        await self.write([error_body(str(error), "service_unavailable")])
        return await self.close()
