"""Code that all routes share: reading prompts, error answers, streamed answers, token usage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import PurePath

import msgspec
from aiohttp import web

from fgengine.clock import WallClock
from fgengine.scheduling.refusal import Busy, QueueFull, RequestRefused
from fgengine.server.client import EngineError
from fgengine.server.connections import Refusal
from fgengine.server.generation import Generation, Service
from fgengine.server.schemas import MAX_BODY_BYTES, BadRequestError, Body, read_body
from fgengine.text import TextCodec, TextError

SERVICE = web.AppKey("service", Service)
LONG_TEXT = 20_000
"""A prompt with at least this number of characters is tokenized in a thread, to not delay other streams."""

log = logging.getLogger("fgengine.server")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


QUEUE_FULL, QUEUE_TIMEOUT = "queue_full", "queue_timeout"
"""Error codes of a busy server."""


def error_body(message: str, kind: str, field: str | None = None, code: str | None = None) -> bytes:
    """Return the JSON body of an error, in OpenAI's format."""
    message = message.encode("utf-8", "backslashreplace").decode()  # it may quote bytes that are not UTF-8
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": field, "code": code}})


def error_response(status: int, message: str, kind: str, field: str | None = None) -> web.Response:
    """Return an error answer. A 503 has a Retry-After header."""
    headers = {"Retry-After": "1"} if status == 503 else None
    return web.Response(
        status=status, body=error_body(message, kind, field), content_type="application/json", headers=headers
    )


def busy_response(error: Busy) -> web.Response:
    """Return 429 if the queue was full, or 503 if the request waited in it for too long, with Retry-After."""
    message = f"{error}; try again in {error.whole_seconds} s"
    if isinstance(error, QueueFull):
        status, body = 429, error_body(message, "rate_limit_error", code=QUEUE_FULL)
    else:
        status, body = 503, error_body(message, "service_unavailable", code=QUEUE_TIMEOUT)
    headers = {"Retry-After": str(error.whole_seconds)}
    return BusyResponse(status=status, body=body, content_type="application/json", headers=headers)


class BusyResponse(web.Response):
    """An answer of a busy server: neither the server nor the request has failed."""


@web.middleware
async def count_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count POST requests by their outcome. It must be the outermost middleware, to see every outcome."""
    if request.method != "POST":
        return await handler(request)
    counters = request.app[SERVICE].counters
    counters.requests_received += 1
    counters.requests_in_flight += 1
    try:
        response = await handler(request)
    except BaseException:  # the client has disconnected: the handler was cancelled, or a write failed
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
    """Answer every error with a JSON body in OpenAI's format and the matching status.

    This is for errors before a stream has started. ``Stream`` reports later ones.
    """
    try:
        return await handler(request)
    except Busy as error:
        return busy_response(error)
    except (BadRequestError, TextError, RequestRefused) as error:
        return error_response(400, str(error), "invalid_request_error", getattr(error, "field", None))
    except UnknownModelError as error:
        body = error_body(str(error), "invalid_request_error", "model", "model_not_found")
        return web.Response(status=404, body=body, content_type="application/json")
    except EngineError as error:
        return error_response(503, str(error), "service_unavailable")
    except Refusal as error:
        kind = "service_unavailable" if error.status == 503 else "invalid_request_error"
        return error_response(error.status, str(error), kind)
    except web.HTTPRequestEntityTooLarge:
        message = f"the body is larger than {MAX_BODY_BYTES} bytes: send a shorter prompt"
        return error_response(413, message, "invalid_request_error")
    except web.RequestPayloadError as error:
        message = f"the body cannot be read: {error}; its Content-Encoding may be wrong"
        return error_response(400, message, "invalid_request_error")
    except web.HTTPException as error:
        message = f"{request.method} {request.path[:200]}: {error.reason}"
        response = error_response(error.status, message, "invalid_request_error")
        if "Allow" in error.headers:  # of a 405
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except ConnectionError:
        raise  # the client has disconnected; aiohttp handles this
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return error_response(500, "the server has failed: see the server's log", "internal_error")


async def read_posted(request: web.Request, kind: type[Body]) -> tuple[Body, float]:
    """Return the checked body, and the time when it was read (engine's clock). Raises BadRequestError."""
    raw = await request.read()
    arrival = WallClock().now()
    return read_body(raw, kind, _log_once), arrival


def check_model(asked: str | None, served: str) -> None:
    """Raise UnknownModelError if a request wants another model than the server has.

    The last part of the model's path is a name of it too.
    """
    if asked and asked not in (served, PurePath(served).name):
        raise UnknownModelError(f"the model {asked[:100]!r} does not exist: this server has {served}")


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


async def prompt_ids(prompt: str | list[int], codec: TextCodec) -> list[int]:
    """Return the token ids of a prompt, which may be text or token ids."""
    if not isinstance(prompt, str):
        return prompt
    if len(prompt) < LONG_TEXT:
        return codec.encode(prompt)
    return await asyncio.to_thread(codec.encode, prompt)


def usage(prompt_tokens: int, generation: Generation) -> dict[str, int]:
    """Return the numbers of tokens, in OpenAI's format."""
    output = generation.output_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output,
        "total_tokens": prompt_tokens + output,
    }


class StreamedResponse(web.StreamResponse):
    """A streamed answer that remembers whether it failed."""

    failed = False
    """Whether it ended with an error after its status had been sent."""


class Stream:
    """A streamed answer. If the engine breaks during it, the last message is the error."""

    def __init__(self, request: web.Request, content_type: str, message: Callable[[bytes], bytes]) -> None:
        """``message`` turns one JSON body into one message of the stream."""
        self._request = request
        self._wrap = message
        self._response = StreamedResponse(
            headers={"Content-Type": content_type, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )

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

    async def fail(self, error: EngineError) -> web.StreamResponse:
        """End the stream with the error. Raises it if no headers were sent, so that it sets the status."""
        if not self._response.prepared:
            raise error
        self._response.failed = True
        await self.write([error_body(str(error), "service_unavailable")])
        return await self.close()
