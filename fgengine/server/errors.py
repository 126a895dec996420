"""The answers to requests that are refused or that failed, in OpenAI's form."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec
from aiohttp import web

from fgengine.scheduling.refusal import Busy, QueueFull, RequestRefused
from fgengine.server.bodies import BodyTooLarge
from fgengine.server.client import Draining, EngineError
from fgengine.server.connections import HttpRefusal
from fgengine.server.encoding import EncodingError
from fgengine.server.logs import Outcome, current_entry
from fgengine.server.models import UnknownModelError
from fgengine.server.schemas import BadRequestError
from fgengine.text import TextError

log = logging.getLogger("fgengine.server")

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
        outcome: Outcome | None = None,
    ) -> None:
        """``outcome``: as what the request counts; None: failed if the status is 5xx, else refused."""
        body = error_body(message, kind, field, code)
        super().__init__(status=status, body=body, content_type="application/json", headers=headers)
        self.message = message
        """Why the request was refused or failed."""
        self.outcome: Outcome = outcome or ("failed" if status >= 500 else "refused")


def error_response(
    status: int,
    message: str,
    kind: str,
    field: str | None = None,
    code: str | None = None,
    outcome: Outcome | None = None,
) -> web.Response:
    """Return an error answer. A 503 has a Retry-After header."""
    headers = {"Retry-After": "1"} if status == 503 else None
    return ErrorResponse(status, message, kind, field, code, headers, outcome)


def busy_response(error: Busy) -> web.Response:
    """Return 429 if the queue was full, or 503 if the request waited in it for too long, with Retry-After."""
    message = f"{error}; try again in {error.whole_seconds} s"
    headers = {"Retry-After": str(error.whole_seconds)}
    if isinstance(error, QueueFull):
        return ErrorResponse(429, message, "rate_limit_error", None, QUEUE_FULL, headers, "rejected")
    return ErrorResponse(503, message, "service_unavailable", None, QUEUE_TIMEOUT, headers, "timed_out")


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
    if isinstance(error, Draining):
        return error_response(503, str(error), "service_unavailable", outcome="rejected")
    if isinstance(error, EngineError):
        return error_response(503, str(error), "service_unavailable")
    if isinstance(error, HttpRefusal):
        if error.status == 503:
            return error_response(503, str(error), "service_unavailable", outcome="rejected")
        return error_response(error.status, str(error), "invalid_request_error", outcome="refused")
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
