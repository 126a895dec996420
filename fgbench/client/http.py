"""A fast HTTP/1.1 client for the load generator.

It sends prepared bytes, passes on the bytes of an answer as they arrive, and reuses connections. httptools
parses the answers.

Each streamed piece costs one callback. A general client wakes the waiting task and copies the piece. With
thousands of streams, this decides which rates the client can measure (``bench/client.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools

from fgbench.client.streams import StreamError
from fgbench.spec.access import OPEN, Access

ERROR_BODY_BYTES = 64 * 1024
IDLE_SECONDS = 1.0
"""A connection that was idle for longer is not reused, because servers close it after 2 seconds or more."""
STALE_SECONDS = 1.0
"""Seconds in which a reused connection may end without an answer and count as stale.

The server then had closed it before the request arrived, so the request is sent again. If the connection ends
later, the server failed, and the request is not sent twice.
"""


@dataclass(frozen=True, slots=True)
class Response:
    """The end of an HTTP response."""

    status: int
    reason: str
    body: bytes
    """First 64 KiB of an answer other than 200; empty for a 200, whose body was passed on as it arrived."""
    retry_after: float | None = None
    """Seconds after which the server accepts a new attempt; None: it does not say."""


class StaleConnection(ConnectionError):
    """The server had closed the connection before the request arrived."""


class Connections:
    """All connections to one server, without a limit, because a limit would be a queue in the client.

    Use it as an async context manager, which closes all connections at its end::

        async with Connections("http://127.0.0.1:8000", "/v1/completions") as connections:
            response = await connections.post(connections.request(body), take, timeout=60.0)
    """

    def __init__(self, url: str, path: str, access: Access = OPEN) -> None:
        """Prepare requests to ``path`` under ``url``.

        Args:
            url: ``http[s]://host[:port][/prefix]``.
            path: Path of the API, such as ``/v1/completions``.
            access: Further headers, and the certificates that are accepted.
        """
        self._access = access
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._address = self._host
        """Host; after the first connection its numeric address, so that a name is looked up only once."""
        self._head = (
            f"POST {parts.path}{path} HTTP/1.1\r\n"
            f"Host: {parts.netloc}\r\n"
            "User-Agent: fgbench\r\n"
            "Accept: */*\r\n"
            "Content-Type: application/json\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in access.headers.items())
        ).encode()
        self._tls: Any = None
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []
        """Idle connections; the most recently used is last."""

    def request(self, body: bytes) -> bytes:
        """Return all bytes of a POST of ``body``."""
        return b"%bContent-Length: %d\r\n\r\n%b" % (self._head, len(body), body)

    async def post(self, request: bytes, take: Callable[[bytes], None], timeout: float) -> Response:
        """Send ``request`` and pass the body of a 200 to ``take``, piece by piece, as it arrives.

        If the server had closed a reused connection, the request is sent once more on a new connection.

        Raises:
            OSError: there is no connection, or it ended before an answer began.
            StreamError: the answer is not HTTP, or it broke off. Any exception of ``take`` is raised too.
            asyncio.TimeoutError: the answer was not complete within ``timeout`` seconds.
        """
        connection = self._reusable()
        if connection is not None:
            try:
                return await connection.exchange(request, take, timeout)
            except StaleConnection:
                pass
        connection = await asyncio.wait_for(self._connect(), timeout)
        return await connection.exchange(request, take, timeout)

    async def __aenter__(self) -> Connections:
        if self._secure:
            self._tls = self._access.tls()
        return self

    async def __aexit__(self, *error: object) -> None:
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # let the transports close

    def _reusable(self) -> _Connection | None:
        """Return an idle connection that the server has probably not closed; None if there is none."""
        if not self._idle:
            return None
        connection = self._idle.pop()
        if asyncio.get_running_loop().time() - connection.idle_since < IDLE_SECONDS:
            return connection
        for old in (connection, *self._idle):  # the others have been idle even longer
            old.abort()
        self._idle.clear()
        return None

    async def _connect(self) -> _Connection:
        transport, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self._open, self._idle),
            self._address,
            self._port,
            ssl=self._tls,
            server_hostname=self._host if self._secure else None,
        )
        self._address = transport.get_extra_info("peername")[0]
        return connection


class _Connection(asyncio.Protocol):
    """One connection with one exchange at a time. Its ``on_`` methods are httptools' callbacks."""

    def __init__(self, open_connections: set[_Connection], idle: list[_Connection]) -> None:
        self._open = open_connections
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._ended: asyncio.Future[Response] | None = None
        """Result of the current exchange; None if the connection is idle."""
        self._used = False
        self.idle_since = 0.0

    async def exchange(self, request: bytes, take: Callable[[bytes], None], timeout: float) -> Response:
        """Send one request and return its response, as ``Connections.post`` describes."""
        self._take = take
        self._sent_at = self._loop.time()
        self._touched = self._complete = self._sized = self._keep = False
        self._status = 0
        self._retry_after: float | None = None
        self._reason = b""
        self._pieces: list[bytes] = []
        self._error_body = b""
        self._ended = ended = self._loop.create_future()
        timer = self._loop.call_later(timeout, self._end, asyncio.TimeoutError())
        try:
            if self._transport.is_closing():
                raise StaleConnection if self._used else ConnectionError("the connection was closed at once")
            self._transport.write(request)
            response: Response = await ended
            return response
        finally:
            timer.cancel()
            if self._ended is ended:  # this task was cancelled, or nothing was sent
                self._ended = None
                self.abort()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._open.add(self)

    def data_received(self, data: bytes) -> None:
        if self._ended is None:  # bytes without a request
            self.abort()
            return
        self._touched = True
        try:
            self._parser.feed_data(data)
            if self._pieces:
                self._pass_on()
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._end(StreamError(f"not HTTP: {error}"))
        except Exception as error:
            self._end(error)
        else:
            if self._complete:
                self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._open.discard(self)
        if self._ended is None:
            if self in self._idle:
                self._idle.remove(self)
        elif self._ends_by_closing:
            self._end(None)
        elif self._status:
            self._end(StreamError("the connection broke before the answer ended"))
        elif self._used and not self._touched and self._loop.time() - self._sent_at < STALE_SECONDS:
            self._end(StaleConnection())
        else:
            self._end(ConnectionError(str(error or "the server closed the connection without an answer")))

    # httptools' callbacks

    def on_status(self, reason: bytes) -> None:
        self._reason = reason

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._sized = True
        elif name == b"retry-after" and value.isdigit() and len(value) < 10:
            self._retry_after = float(value)

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        self._keep = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        self._complete = self._status >= 200  # a status below 200 is only provisional

    @property
    def _ends_by_closing(self) -> bool:
        """Whether the end of the connection is the end of the answer."""
        return self._status >= 200 and not self._sized

    def _pass_on(self) -> None:
        pieces, self._pieces = self._pieces, []
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._status == 200:
            self._take(data)
        elif len(self._error_body) < ERROR_BODY_BYTES:
            self._error_body += data[:ERROR_BODY_BYTES]

    def _end(self, error: BaseException | None) -> None:
        ended, self._ended = self._ended, None
        if ended is None or ended.done():
            return
        if error is not None:
            self.abort()
            ended.set_exception(error)
            return
        if self._keep and self._complete and not self._transport.is_closing():
            self._used = True
            self.idle_since = self._loop.time()
            self._idle.append(self)
        else:
            self.abort()
        reason = self._reason.decode("latin-1")
        ended.set_result(Response(self._status, reason, self._error_body, self._retry_after))
