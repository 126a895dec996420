"""HTTP/1.1 as a load generator needs it: bytes made beforehand go out, an answer's bytes are handed on as
they arrive, and connections are used again.

Each streamed piece costs a callback here, where a general client takes a wakeup of the waiting task and
copies: at thousands of streams that decides which rates can be measured (``bench/client.py``). Parsing is
httptools'.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httptools

from fgbench.client.streams import StreamError

ERROR_BODY_BYTES = 64 * 1024
IDLE_SECONDS = 1.0
"""A connection idle for longer is not used again: servers close theirs after 2 seconds and more."""
STALE_SECONDS = 1.0
"""A used connection that ends so soon after a request, without a byte of an answer, had been closed by the
server before it saw the request. Later it is the server that failed, and nothing is sent twice."""


@dataclass(frozen=True, slots=True)
class Response:
    status: int
    reason: str
    body: bytes
    """Of an answer that is not 200: its first 64 KiB. That of a 200 was handed on as it came."""
    retry_after: float | None = None
    """Seconds after which the server asks to be asked again; None where it does not say."""


class StaleConnection(ConnectionError):
    """The server had closed the connection before the request came."""


class Connections:
    """All connections to one server; no limit on their number, for a limit would be a queue in the client.

    A context: what is open is closed with it.
    """

    def __init__(self, url: str, path: str, headers: Mapping[str, str] | None = None) -> None:
        """``url``: ``http[s]://host[:port][/prefix]``; requests go to ``path`` under it, with ``headers``
        besides the usual ones."""
        parts = urlsplit(url)
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._address = self._host
        """After the first connection its numeric address: a name is looked up once."""
        self._head = (
            f"POST {parts.path}{path} HTTP/1.1\r\n"
            f"Host: {parts.netloc}\r\n"
            "User-Agent: fgbench\r\n"
            "Accept: */*\r\n"
            "Content-Type: application/json\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        ).encode()
        self._tls: Any = None
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []
        """The latest used last."""

    def request(self, body: bytes) -> bytes:
        """All the bytes of a POST of ``body``."""
        return b"%bContent-Length: %d\r\n\r\n%b" % (self._head, len(body), body)

    async def post(self, request: bytes, take: Callable[[bytes], None], timeout: float) -> Response:
        """Sends ``request`` and gives the body of a 200 to ``take``, piece by piece, as it arrives.

        A request is sent again, once and on a new connection, where the server had closed the old one.

        Raises:
            OSError: no connection, or it ended before an answer began.
            StreamError: what came is not HTTP, or broke off; also whatever ``take`` raises.
            asyncio.TimeoutError: no whole answer within ``timeout`` seconds.
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
            import ssl

            self._tls = ssl.create_default_context()
        return self

    async def __aexit__(self, *error: object) -> None:
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # for the transports to go

    def _reusable(self) -> _Connection | None:
        if not self._idle:
            return None
        connection = self._idle.pop()
        if asyncio.get_running_loop().time() - connection.idle_since < IDLE_SECONDS:
            return connection
        for old in (connection, *self._idle):  # the others have been idle for longer still
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
    """One connection, one exchange at a time. Its public ``on_`` methods are httptools' callbacks."""

    def __init__(self, open_ones: set[_Connection], idle: list[_Connection]) -> None:
        self._open = open_ones
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self._ended: asyncio.Future[Response] | None = None
        """Of the exchange under way."""
        self._used = False
        self.idle_since = 0.0

    async def exchange(self, request: bytes, take: Callable[[bytes], None], timeout: float) -> Response:
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
        self._transport.abort()

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._open.add(self)

    def data_received(self, data: bytes) -> None:
        if self._ended is None:  # nobody asked
            self.abort()
            return
        self._touched = True
        try:
            self._parser.feed_data(data)
            if self._pieces:
                self._hand_on()
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
        elif self._keep_until_closed:
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
        self._complete = self._status >= 200  # before it come only hints

    @property
    def _keep_until_closed(self) -> bool:
        """The answer is one that ends with its connection."""
        return self._status >= 200 and not self._sized

    def _hand_on(self) -> None:
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
