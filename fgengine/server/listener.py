"""Accepts connections, as many as there may be.

asyncio's own servers accept every connection until files run out, and then reset all new ones.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys

from aiohttp import web

from fgengine.server.connections import Connections
from fgengine.server.http_connection import HttpConnection

BATCH, CROWDED_BATCH = 32, 8
"""Connections accepted in a row; then the event loop reads from those before, which may make room."""
PAUSE_SECONDS = 0.1
"""Pause after the system had no resources for one more connection."""
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""A client whose machine has vanished is noticed after two minutes. (Seconds, seconds, probes.)"""


class Listener:
    """Accepts the connections of a listening socket and serves them.

        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        listener = Listener(socket.create_server(("127.0.0.1", 0)), runner, Connections(1000))
        listener.close()

    With a context ``tls``, connections are encrypted.
    """

    def __init__(
        self,
        listening: socket.socket,
        runner: web.BaseRunner,
        connections: Connections,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        assert runner.server is not None
        self._socket = listening
        self._server = runner.server
        self._connections = connections
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._opening: dict[asyncio.Task[None], HttpConnection] = {}
        self._pause: asyncio.TimerHandle | None = None
        self._reading = False
        self._closed = False
        connections.on_close = self._resume
        listening.setblocking(False)
        if sys.platform == "linux":  # accepted sockets inherit these
            for name, value in KEEPALIVE.items():
                listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._resume()

    def close(self) -> None:
        """Accept no more connections. Open ones are not affected."""
        self._stop_reading()
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        for connection in self._opening.values():
            connection.drop()
        self._connections.stop()
        self._socket.close()

    def _resume(self) -> None:
        if not self._closed and not self._reading and not self._connections.full:
            self._reading = True
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())

    def _accept(self) -> None:
        for _ in range(CROWDED_BATCH if self._connections.crowded else BATCH):
            if self._connections.full:
                return self._stop_reading()  # the others wait in the kernel's queue
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return None
            except OSError:  # no files or no memory
                self._stop_reading()
                self._pause = self._loop.call_later(PAUSE_SECONDS, self._resume)
                return None
            accepted.setblocking(False)
            connection = HttpConnection(self._server, self._connections, accepted, self._loop)
            task = self._loop.create_task(self._open(accepted, connection))
            self._opening[task] = connection
            task.add_done_callback(self._opening.pop)
        return None

    async def _open(self, accepted: socket.socket, connection: HttpConnection) -> None:
        timeout = None if self._tls is None else self._connections.timeouts.head
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection, accepted, ssl=self._tls, ssl_handshake_timeout=timeout
            )
        except OSError:  # it was not TLS, or the client has left
            self._connections.closed(connection)
