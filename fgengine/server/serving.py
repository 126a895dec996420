"""Runs the server: its start, its signals and its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

from aiohttp import web

from fgengine.config import EngineConfig
from fgengine.server.app import make_app
from fgengine.server.connections import Connections, Timeouts
from fgengine.server.file_limit import connection_limit, raise_file_limit
from fgengine.server.generation import Service
from fgengine.server.listener import Listener
from fgengine.server.options import ServerOptions
from fgengine.server.process import WORKER, EngineProcess
from fgengine.server.tls import server_context
from fgengine.text import TextCodec

HANDLER_SECONDS = 1.0
"""Seconds that answers may take to end when the server stops; their requests have been aborted before."""
LINGER_SECONDS = 1.0
"""Seconds for which the server of a broken engine still answers, so that GET /health reports the reason."""


def run(
    config: EngineConfig,
    options: ServerOptions,
    find_tokenizer: Callable[[], Path],
    *,
    report: Callable[[str], None],
    worker: Sequence[str] = WORKER,
) -> int:
    """Serve until a signal arrives or the engine breaks; return the exit status of the process.

    The exit status is 0 after SIGTERM, 130 after SIGINT, and 1 if the engine could not start or broke, or if
    the server could not listen on the address. A second signal ends the process at once.

    Args:
        find_tokenizer: returns the folder with ``tokenizer.json``. It may take long.
        report: called with sentences about progress and errors.
        worker: the command of the engine's process.
    """
    try:
        tls = None
        if options.ssl_certfile is not None:
            tls = server_context(options.ssl_certfile, options.ssl_keyfile)
        limit = connection_limit(options.max_connections, raise_file_limit())
    except ValueError as error:
        report(str(error))
        return 1
    connections = Connections(limit, Timeouts(idle=options.keep_alive_timeout))
    try:
        listener = _listen(options.host, options.port)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]  # the rest only repeats the address
        report(f"cannot listen on {options.host}:{options.port}: {reason}; give another --host or --port")
        return 1
    engine = EngineProcess(report, command=worker)
    server = _Server(engine, options, report, connections, tls)
    main = server.serve(config, find_tokenizer, listener)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return int(uvloop.run(main))


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


class _Server:
    def __init__(
        self,
        engine: EngineProcess,
        options: ServerOptions,
        report: Callable[[str], None],
        connections: Connections,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._engine = engine
        self._options = options
        self._report = report
        self._connections = connections
        self._tls = tls
        self._signals: list[signal.Signals] = []
        self._ending = asyncio.Event()

    async def serve(
        self, config: EngineConfig, find_tokenizer: Callable[[], Path], listener: socket.socket
    ) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        engine, service = self._engine, Service(self._engine, config)
        runner = web.AppRunner(
            make_app(service, self._options),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=HANDLER_SECONDS,
        )
        await runner.setup()
        service.connections = self._connections.counters
        accepting = Listener(listener, runner, self._connections, self._tls)
        life = asyncio.create_task(self._live(config, find_tokenizer, service, listener))
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait([life, ending], return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                self._report(life.result())
                await self._linger()
        finally:
            life.cancel()
            ending.cancel()
            accepting.close()
            await engine.close()  # fails open requests, so that their handlers end
            await runner.cleanup()
            await engine.stop()
        if not self._signals:
            return 1
        return 130 if self._signals[0] == signal.SIGINT else 0

    async def _live(
        self,
        config: EngineConfig,
        find_tokenizer: Callable[[], Path],
        service: Service,
        listener: socket.socket,
    ) -> str:
        """Start the engine and serve until it breaks; return the reason as a sentence."""
        try:
            folder = await asyncio.to_thread(find_tokenizer)
            service.codec = await asyncio.to_thread(TextCodec.load, folder)
        except (ValueError, OSError) as error:
            return str(error)
        if service.codec.chat_problem:
            self._report(f"no chat completions: {service.codec.chat_problem}")
        await self._engine.start(config)
        await self._engine.settled.wait()
        if self._engine.model is None:
            return f"the engine could not start: {self._engine.message}"
        host, port = listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        scheme = "http" if self._tls is None else "https"
        self._report(f"ready: {scheme}://{host}:{port} serves {self._engine.model.model_name}")
        await self._engine.broken.wait()
        return f"the engine is broken: {self._engine.message}"

    async def _linger(self) -> None:
        """Keep answering for a while, so that clients can read the reason; end early after a signal."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ending.wait(), LINGER_SECONDS)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._signals:
            self._engine.kill()
            os._exit(128 + number)
        self._signals.append(number)
        self._report("stopping")
        self._ending.set()
