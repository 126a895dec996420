"""Errors of HTTP itself, in OpenAI's format: requests that no route sees, or that none should see."""

from __future__ import annotations

from http import HTTPStatus

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMethod, ContentEncodingError, HttpProcessingError, LineTooLong

from fgengine.server.connections import HttpRefusal
from fgengine.server.errors import error_body, error_response
from fgengine.server.handlers import Handler

MAX_LINE_BYTES = 8190
"""Longest request line that is accepted."""
MAX_FIELD_BYTES = 16_380
"""Longest header that is accepted. The two differ, so that an error tells which one was longer."""
ENCODINGS = frozenset({"", "identity", "gzip", "deflate", "br", "zstd"})
"""Encodings of a body. aiohttp itself refuses the last two where their packages are not installed."""
TLS_HELLO = "\\x16\\x03"
"""How the first bytes of a TLS connection look in an error message."""
MAX_QUOTED = 300


@web.middleware
async def refuse_forms(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse versions of HTTP and encodings of the body that the server does not understand."""
    if request.version[0] != 1:
        version = f"HTTP/{request.version[0]}.{request.version[1]}"
        raise HttpRefusal(505, f"{version} is not supported: use HTTP/1.1")
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ENCODINGS:
        raise HttpRefusal(415, f"Content-Encoding {encoding[:50]!r} is not supported: use gzip or none")
    return await handler(request)


def explain(error: BaseException | None) -> tuple[int, str]:
    """Return the status and the message for a request that could not be parsed.

    >>> from aiohttp.http_exceptions import BadHttpMessage
    >>> explain(BadHttpMessage("Too many headers received"))
    (431, 'too many headers')
    """
    if isinstance(error, ContentEncodingError):
        return 415, "this Content-Encoding is not supported: use gzip or none"
    if isinstance(error, LineTooLong):
        if error.args[1] == MAX_LINE_BYTES:
            return 414, f"the address of the request has more than {MAX_LINE_BYTES} bytes"
        return 431, f"a header has more than {MAX_FIELD_BYTES} bytes"
    if isinstance(error, UnicodeError):
        return 400, "the request is not valid HTTP: a header is not text in UTF-8"
    message = error.message if isinstance(error, HttpProcessingError) else str(error)
    if message == "Too many headers received":
        return 431, "too many headers"
    if isinstance(error, BadHttpMethod) and (TLS_HELLO in message or "HTTPS" in message):
        return 400, "this port speaks HTTP, not HTTPS: use an address with http://"
    first_line = message.strip().partition("\n")[0].rstrip(":")
    return 400, f"the request is not valid HTTP: {first_line[:MAX_QUOTED]}"


def answer_outside(error: web.HTTPException) -> web.Response:
    """Return the answer for an error that aiohttp raises before the application's own code is called."""
    return error_response(error.status, error.text or error.reason, "invalid_request_error")


def raw_answer(refusal: HttpRefusal) -> bytes:
    """Return the bytes of an error answer that ends the connection."""
    kind = "service_unavailable" if refusal.status == 503 else "invalid_request_error"
    body = error_body(str(refusal), kind)
    head = f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}\r\n"
    head += "Retry-After: 1\r\n" if refusal.status == 503 else ""
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
