"""Runs the server: its start, its signals and its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from aiohttp import web

from fgengine.config import EngineConfig
from fgengine.server.access import exposure
from fgengine.server.app import make_app
from fgengine.server.client import EngineError
from fgengine.server.connections import Connections, Timeouts
from fgengine.server.encoding import Encoder
from fgengine.server.file_limit import connection_limit, raise_file_limit
from fgengine.server.generation import Service
from fgengine.server.listener import Listener
from fgengine.server.logs import logging_to
from fgengine.server.options import ServerOptions
from fgengine.server.process import WORKER, EngineProcess
from fgengine.server.tls import server_context

log = logging.getLogger("fgengine.server")
HANDLER_SECONDS = 1.0
"""Seconds that answers may take to end when the server stops; their requests have been aborted before."""
POLL_SECONDS = 0.02
"""How often a server that drains checks whether requests are open."""
WATCH_SECONDS = 1.0
"""Pause between two questions to the engine whether it still answers."""
LONGEST_STEPS = 4.0
"""An engine is not hung before it has not answered for this many of its longest steps."""
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

    The exit status is 0 after SIGTERM and SIGHUP, 130 after SIGINT, and 1 if the engine could not start or
    broke, or if the server could not listen on the address. After SIGTERM and SIGHUP, open requests are
    finished first. A second signal ends the process at once.

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
    with logging_to(sys.stderr, options.log_level, options.log_format):
        if (warning := exposure(listener.getsockname()[0], bool(options.keys))) is not None:
            log.warning(warning)
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
        self._encoder: Encoder | None = None
        self._connections = connections
        self._tls = tls
        self._signals: list[signal.Signals] = []
        self._ending = asyncio.Event()

    async def serve(
        self, config: EngineConfig, find_tokenizer: Callable[[], Path], listener: socket.socket
    ) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored after nohup
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
            elif self._signals[0] != signal.SIGINT:
                await self._drain(service)
        finally:
            life.cancel()
            ending.cancel()
            accepting.close()
            await engine.close()  # fails open requests, so that their handlers end
            await runner.cleanup()
            await engine.stop()
            if self._encoder is not None:
                self._encoder.close()
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
            encoder = self._encoder = service.encoder = await Encoder.load(folder, config.model)
        except (ValueError, OSError) as error:
            return str(error)
        gc.collect()
        gc.freeze()  # what was loaded stays, so that collections of requests' objects need not scan it
        if encoder.chat_problem:
            self._report(f"no chat completions: {encoder.chat_problem}")
        host, port = listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        scheme = "http" if self._tls is None else "https"
        for restarts in reversed(range(self._options.restart_engine + 1)):
            await self._start_engine(config)
            if self._engine.state == "broken" and self._engine.model is None:
                return f"the engine could not start: {self._engine.message}"
            assert self._engine.model is not None
            encoder.max_tokens = self._engine.model.max_model_len
            if self._engine.state == "ready":
                self._report(f"ready: {scheme}://{host}:{port} serves {self._engine.model.model_name}")
            reason = await self._until_broken(self._engine.model.longest_step, replace_hung=restarts > 0)
            if not restarts or service.draining:
                break
            self._report(f"{reason}: it is being replaced; {restarts - 1} more replacements are allowed")
            await self._engine.replace()
        return reason

    async def _start_engine(self, config: EngineConfig) -> None:
        """Start an engine; return when it is ready or broken."""
        try:
            await self._engine.start(config)
        except OSError as error:  # the system has no memory or no files for another process
            self._engine.fail(f"its process could not be started: {error}")
        await self._engine.settled.wait()

    async def _until_broken(self, longest_step: float, *, replace_hung: bool) -> str:
        """Watch the engine until it breaks, or hangs if a hung one is replaced; return the reason."""
        limit = max(self._options.hang_timeout, LONGEST_STEPS * longest_step)
        ends = [self._engine.broken.wait()] + ([self._engine.hung.wait()] if replace_hung else [])
        tasks = [asyncio.create_task(self._watch(limit)), *map(asyncio.create_task, ends)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        return f"the engine is {self._engine.state}: {self._engine.message}"

    async def _watch(self, limit: float) -> None:
        """Ask the engine again and again whether it answers within ``limit`` seconds."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            state = self._engine.state
            with contextlib.suppress(EngineError):  # it is broken: others see that too
                await self._engine.answers(limit)
            if state == "hung" and self._engine.state == "ready":
                self._report("the engine answers again")

    async def _drain(self, service: Service) -> None:
        """Wait until all open requests have ended, or for the drain timeout."""
        service.draining = True
        self._connections.refuse_bodies("the server is shutting down")
        await asyncio.sleep(0)
        deadline = time.monotonic() + self._options.drain_timeout
        if service.counters.requests_in_flight and self._options.drain_timeout:
            self._report(
                f"open requests: {service.counters.requests_in_flight}; they have "
                f"{self._options.drain_timeout:g} s to finish, another signal ends them"
            )
        while service.counters.requests_in_flight and time.monotonic() < deadline:
            await asyncio.sleep(POLL_SECONDS)

    async def _linger(self) -> None:
        """Keep answering for a while, so that clients can read the reason; end early after a signal."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._ending.wait(), LINGER_SECONDS)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._signals:
            self._engine.kill()
            if self._encoder is not None:
                self._encoder.close()
            logging.shutdown()  # writes what waits
            os._exit(128 + number)
        self._signals.append(number)
        self._report("stopping")
        self._ending.set()
