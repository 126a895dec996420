"""One connection of the HTTP server: aiohttp's protocol, with timeouts, half-closed clients and JSON errors.

aiohttp has no setting for these. ``tests/fgengine/server/test_http_connection.py`` names the parts of its
``RequestHandler`` on which this file depends, and fails if one of them changes.

**A client that closes its side** (a FIN) may still wait for its answer, as ``nc -N`` does, or it may have
closed the connection completely. TCP does not tell which. So the request goes on, and the server sends what
every client ignores: "100 Continue" before the answer, or an empty line between the messages of a stream. If
the client has left, its machine answers with a reset, and the request is aborted. Where nothing can be sent,
a FIN counts as leaving: over TLS, and for a POST over HTTP/1.0 (a proxy's, usually) before its answer.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import socket
import sys
from typing import Any, cast

from aiohttp import web
from aiohttp.http import HttpVersion11
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from fgengine.server.connections import FULL, PIECE_BYTES, Connections, HttpRefusal, Phase
from fgengine.server.errors import error_response
from fgengine.server.handlers import Handler
from fgengine.server.http_errors import (
    MAX_FIELD_BYTES,
    MAX_LINE_BYTES,
    answer_outside,
    explain,
    raw_answer,
)
from fgengine.server.routes import HEALTH

FIRST_PROBE_SECONDS = 0.05
"""Time from a FIN to the first probe: quick answers are sent before it."""
RESET_SECONDS = (0.02, 0.3)
"""Times after a probe at which the server looks for the reset of a client that has left, near or far."""
PROBE_SECONDS = 5.0
"""Time between two probes."""


class HttpConnection(web.RequestHandler):
    """A connection of the server; see the module."""

    __slots__ = (
        "_accepted",
        "_answer",
        "_answered",
        "_body",
        "_connections",
        "_ended",
        "_left",
        "_method",
        "_piece",
        "_probe_timer",
        "_probing",
        "_refused",
        "_sent_before",
        "_version",
        "_wire",
        "extra",
    )

    def __init__(
        self,
        server: web.Server,
        connections: Connections,
        accepted: socket.socket,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=cast(Any, None),
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            lingering_time=connections.timeouts.leaving,
            keepalive_timeout=connections.timeouts.idle + 3600,  # Connections is earlier
        )
        self._connections = connections
        self._accepted = accepted
        self._wire: asyncio.Transport | None = None  # also while it is being closed, unlike aiohttp's
        self._answered = 0
        self._version: Any = None  # of the last request
        self._method = ""
        self._body: StreamReader | None = None
        self._piece = 0
        self._answer: tuple[web.BaseRequest, web.StreamResponse] | None = None
        self._sent_before = 0
        self._refused = False  # nothing more is read
        self._ended = False  # the client has sent a FIN
        self._left: asyncio.Future[None] | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._probing: asyncio.Task[None] | None = None
        self.extra = connections.open(self) is Phase.EXTRA
        """Whether there were too many connections already."""

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._wire = None
        self._connections.closed(self)
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        count, body = self._request_count, self._body
        in_body = _unfinished(body)
        between = count == self._answered and not in_body
        super().data_received(data)
        if body is not None and in_body:
            error = body.exception()
            if self._request_count > count and _unfinished(body):  # the new message is an error in that body
                error = web.RequestPayloadError("it is not framed as its headers say")
            if error is not None:
                self._spoil(body, error)
        if self._request_count > count:
            self._note_request()
        elif between and data.strip(b"\r\n"):
            if self._connections.phase(self) in (Phase.IDLE, Phase.ANSWER):
                self._connections.enter(self, Phase.HEAD)
            return
        self._piece += len(data)
        self._settle()

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp always lets the connection close
        """Return whether the connection stays open, because a complete request waits for its answer."""
        if self._left is not None:  # our side is closed: nothing more can be sent
            if not self._left.done():
                self._left.set_result(None)
            return False
        waiting = self._request_count > self._answered and not _unfinished(self._body)
        if not waiting or not self._can_half_close():
            return False
        if self._answer is not None:
            self._sent_before = self._answer[0].writer.output_size
        elif self._version != HttpVersion11 and self._method == "POST":
            return False
        self._ended = True
        self._probe_timer = self._loop.call_later(FIRST_PROBE_SECONDS, self._probe)
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self._connections.watch_writing(self)

    # What aiohttp calls

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException):
            resp = answer_outside(resp)
        count = self._request_count
        result = await super().finish_response(request, resp, start_time)
        if self._request_count > count and self._messages:  # it was behind a request for another protocol
            self._note_request()
        self._answered += 1
        self._answer = None
        if self._wire is None:
            return result
        spoilt = self._body is not None and self._body.exception() is not None
        if self._refused or spoilt:
            await self._let_leave()
        if self._left is not None:  # our side is closed: what came behind the refused request gets no answer
            return result[0], True
        if self._ended and not self._messages:
            self.close()
        self._settle()
        return result

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to a request that is not HTTP, or whose handler has failed."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun: no other one can be sent")
        # aiohttp raises UnicodeError when it quotes a header that is not text. Ours are caught before this.
        if status >= 500 and not isinstance(exc, UnicodeError):
            super().log_exception("Error handling request", exc_info=exc)
            response = error_response(500, "the server has failed: see the server's log", "internal_error")
        else:
            self._connections.counters.malformed_requests += 1
            self._refused = True
            reported = exc if isinstance(exc, HttpProcessingError) else HttpProcessingError(message=str(exc))
            self.logger.debug("malformed HTTP", exc_info=reported)  # ``logs`` counts these
            response = error_response(*explain(exc), "invalid_request_error")
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """Log an error of the server. A body that could not be read is the client's."""
        if not isinstance(kw.get("exc_info"), (HttpRefusal, web.RequestPayloadError)):
            super().log_exception(*args, **kw)

    def close(self) -> None:
        super().close()
        if self._left is not None and not self._left.done():
            self._left.set_result(None)

    # What ``Connections`` calls

    def refuse_head(self, refusal: HttpRefusal) -> None:
        self._refused = True
        if self._wire is not None and not self._wire.is_closing():
            self._wire.write(raw_answer(refusal))
        self.drop()

    def refuse_body(self, refusal: HttpRefusal) -> None:
        self._refused = True
        assert self._body is not None
        self._spoil(self._body, refusal)

    def drop(self) -> None:
        self._refused = True
        if self._wire is None:
            with contextlib.suppress(OSError):  # it is being opened: this makes that fail
                self._accepted.shutdown(socket.SHUT_RDWR)
        elif self._wire.get_write_buffer_size() > 0:
            self._wire.abort()
        else:
            self._wire.close()

    def has_unread(self) -> bool:
        with contextlib.suppress(OSError):  # nothing to read, or reset
            return len(self._accepted.recv(1, socket.MSG_PEEK)) > 0
        return False

    def unsent(self) -> int:
        if self._wire is None:
            return 0
        return self._wire.get_write_buffer_size() + _in_kernel(self._wire.get_extra_info("socket"))

    def all_sent(self) -> None:
        self._settle()

    # What the application calls

    def note_answer(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Take note of an answer whose headers are about to be sent."""
        self._answer = (request, response)
        last = self._ended and self._request_count - self._answered == 1
        if self.extra or last:
            response.force_close()
            response.headers["Connection"] = "close"

    def count_refusal(self) -> None:
        """Count a request that was refused because there are too many connections."""
        self._connections.counters.connections_refused += 1

    # Our own

    def _spoil(self, body: StreamReader, error: BaseException) -> None:
        """Make reading of the body fail.

        aiohttp's reader overlooks an error that comes just after the end of a chunk has woken it, and waits
        again. So the error is set once more when it waits.
        """
        body.set_exception(error)
        self._loop.call_soon(body.set_exception, error)

    def _note_request(self) -> None:
        message, self._body = self._messages[-1]
        self._version, self._method = getattr(message, "version", None), getattr(message, "method", "")
        self._piece = PIECE_BYTES

    def _settle(self) -> None:
        """Tell the connections in which phase this one is."""
        connections, waiting = self._connections, self._request_count - self._answered
        phase = connections.phase(self)
        if phase in (Phase.LEAVING, Phase.CLOSING) or self._wire is None:
            return
        if waiting == 1 and _unfinished(self._body):
            assert self._body is not None
            if phase is not Phase.BODY or self._piece >= PIECE_BYTES:
                connections.enter(self, Phase.BODY)
                self._piece = 0
            connections.hold(self, self._body.total_bytes)
        elif waiting > 0:
            connections.enter(self, Phase.ANSWER)
        elif self._request_count > 0 and phase is not Phase.HEAD:
            if self.unsent() > 0:
                connections.enter(self, Phase.ANSWER)
                connections.watch_writing(self)
            else:
                connections.enter(self, Phase.IDLE)

    def _can_half_close(self) -> bool:
        return self._wire is not None and self._wire.get_extra_info("sslcontext") is None

    async def _let_leave(self) -> None:
        """End our side of the connection and wait for the client to end its own: then it has the answer."""
        assert self._wire is not None
        if self._body is not None and (error := self._body.exception()) is not None:
            error.__traceback__ = None  # it refers to what was read of the body
        if self._ended or not self._can_half_close():
            return
        self._refused = True
        self._connections.enter(self, Phase.LEAVING)
        try:
            self._wire.write_eof()
        except OSError:  # the client has reset the connection
            self._wire.abort()
            return
        self._left = self._loop.create_future()
        await self._left

    def _probe(self) -> None:
        """Send something that a client ignores, unless it has left: then its machine sends a reset."""
        if self._wire is None:
            return
        if self._answer is None:
            if self._version == HttpVersion11:
                self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            request, response = self._answer
            sent = request.writer.output_size
            if (
                sent == self._sent_before
                and not isinstance(response, web.Response)
                and not self.writing_paused
            ):
                self._probing = self._loop.create_task(_write_blank_line(response))
            self._sent_before = sent
        for seconds in RESET_SECONDS:
            self._loop.call_later(seconds, self._close_if_reset)
        self._probe_timer = self._loop.call_later(PROBE_SECONDS, self._probe)

    def _close_if_reset(self) -> None:
        if self._wire is not None:
            connection = self._wire.get_extra_info("socket")
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0:
                self._wire.abort()


@web.middleware
async def refuse_extra(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what came on a connection above the limit, except requests for the server's health."""
    protocol = request.protocol
    if isinstance(protocol, HttpConnection) and protocol.extra and request.path not in HEALTH:
        protocol.count_refusal()
        raise HttpRefusal(503, FULL)
    return await handler(request)


async def note_answer(request: web.Request, response: web.StreamResponse) -> None:
    """Tell the connection about its answer; for ``Application.on_response_prepare``."""
    if isinstance(request.protocol, HttpConnection):
        request.protocol.note_answer(request, response)


def _unfinished(body: StreamReader | None) -> bool:
    return body is not None and not body.is_eof() and body.exception() is None


async def _write_blank_line(response: web.StreamResponse) -> None:
    with contextlib.suppress(ConnectionError, RuntimeError):  # the client has left, or the answer has ended
        await response.write(b"\n")


def _in_kernel(connection: Any) -> int:
    """Return the number of bytes in the socket's send queue; 0 where the system does not tell."""
    if sys.platform != "linux" or connection is None or connection.fileno() < 0:
        return 0
    import fcntl
    import termios

    count = array.array("i", [0])
    fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, count)
    return count[0]
