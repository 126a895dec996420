"""The server's side of the channel to the engine: requests go in, each one's tokens come out."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from fgengine.config import EngineConfig
from fgengine.request import SamplingParams
from fgengine.scheduling.refusal import QueueFull, QueueTimeout, RequestRefused
from fgengine.server import messages
from fgengine.server.messages import Account, NewToken

State = Literal["starting", "ready", "broken", "stopping"]


class EngineError(RuntimeError):
    """The engine is not ready yet, is broken or stops; the message says which and why."""


class TokenStream:
    """One request's tokens as they come from the engine."""

    def __init__(self, id: str) -> None:
        self.id = id
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tokens: list[NewToken] = []
        self._ended: asyncio.Future[Account] = asyncio.get_running_loop().create_future()
        self._news = asyncio.Event()
        for future in (self._accepted, self._ended):  # a failure nobody waits for is no news
            future.add_done_callback(lambda f: f.cancelled() or f.exception())

    async def next(self) -> list[NewToken]:
        """All tokens that have come since the last call: at least one, unless the request has ended.

        Raises:
            EngineError: the engine broke down or stops.
            QueueTimeout: the engine dropped the request, which had not started.
        """
        await self._news.wait()
        if not self._tokens:
            self._ended.result()
        tokens, self._tokens = self._tokens, []
        if not self._ended.done():
            self._news.clear()
        return tokens

    async def account(self) -> Account:
        """Where the request's time went, once it has ended. Raises EngineError."""
        return await asyncio.shield(self._ended)

    async def accepted(self) -> None:
        """Returns when the engine has taken the request. Raises RequestRefused or EngineError."""
        await asyncio.shield(self._accepted)

    def accept(self) -> None:
        if not self._accepted.done():
            self._accepted.set_result(None)

    def put(self, token: NewToken) -> None:
        self._tokens.append(token)
        if token.account is not None:
            self.end(token.account)
        self._news.set()

    def end(self, account: Account) -> None:
        if not self._ended.done():
            self._ended.set_result(account)
        self._news.set()

    def fail(self, error: Exception) -> None:
        for future in (self._accepted, self._ended):
            if not future.done():
                future.set_exception(error)
        self._news.set()


class EngineClient:
    """Speaks ``messages`` over a connected socket. One event loop only."""

    def __init__(self, report: Callable[[str], None] = lambda text: None) -> None:
        self.state: State = "starting"
        self.message = "starting the engine's process"
        """What it is doing while it starts; why it is broken."""
        self.model: messages.EngineReady | None = None
        self.settled = asyncio.Event()
        """Set when the engine is ready, broken or stopping."""
        self.broken = asyncio.Event()
        self.drops_waiting = False
        """Whether a request that was taken may be dropped before its first token."""
        self._full_for: float | None = None
        """What the engine said last of its queue: seconds after which a request is worth sending."""
        self._report = report
        self._streams: dict[str, TokenStream] = {}
        self._stats: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def connect(self, channel: socket.socket, config: EngineConfig) -> None:
        """Start talking; the engine is ready only when ``state`` says so."""
        reader, self._writer = await asyncio.open_connection(sock=channel)
        self.drops_waiting = config.queue_timeout is not None
        self._send(messages.Start(config))
        self._reading = asyncio.create_task(self._read(reader))

    async def close(self) -> None:
        """Say goodbye: open requests fail, the engine's process sees the channel close and ends."""
        if self.state != "broken":
            self.state, self.message = "stopping", "the server is shutting down"
        self._fail_all()
        if self._writer is not None:
            self._writer.close()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def add(
        self, id: str, prompt: list[int], params: SamplingParams, *, arrival: float, user: str = ""
    ) -> TokenStream:
        """Hand a request that came at ``arrival`` to the engine; returns when it has taken it.

        Raises:
            RequestRefused: it could never run, or, as a QueueFull, not now.
            EngineError: not ready, broken or stopping.
        """
        self.check_ready()
        stream = self._streams[id] = TokenStream(id)
        self._send(messages.Add(id, prompt, params, arrival, user))
        try:
            await stream.accepted()
        except asyncio.CancelledError:  # the client left while the request was on its way
            self.abort(id)
            raise
        return stream

    def abort(self, id: str) -> None:
        """Have the engine drop a request, if it still runs; its stream ends with what it cost."""
        if id in self._streams and self.state == "ready":
            self._send(messages.Abort(id))

    async def stats(self) -> dict[str, Any]:
        """The engine's counters, taken between two steps. Raises EngineError."""
        self.check_ready()
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._stats.append(answer)
        self._send(messages.AskStats())
        return await answer

    def check_ready(self) -> None:
        """Raises EngineError unless requests can be served."""
        if self.state != "ready":
            raise EngineError(f"the engine is {self.state}: {self.message}")

    def check_room(self) -> None:
        """Whether it is worth reading a request at all: as of the engine's last step, which judges again.

        Raises:
            QueueFull: it would be refused.
            EngineError: not ready, broken or stopping.
        """
        self.check_ready()
        if self._full_for is not None:
            raise QueueFull("the queue is full (max_queue, max_queue_tokens)", self._full_for)

    def _send(self, command: messages.Command) -> None:
        assert self._writer is not None
        self._writer.write(messages.frame(command))

    async def _ending(self) -> str:
        """How the engine's process ended, once the channel has been closed from its side."""
        return "its process closed the channel"

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while self.state != "broken":
                header = await reader.readexactly(messages.LENGTH_BYTES)
                body = await reader.readexactly(int.from_bytes(header, "big"))
                self._handle(messages.read_event(body))
        except (asyncio.IncompleteReadError, ConnectionError):
            self._break(await self._ending())
        except Exception as error:  # whatever it is, nobody may wait for an answer that will not come
            self._break(f"its process said what the server cannot follow: {error!r}")

    def _handle(self, event: messages.Event) -> None:
        if isinstance(event, messages.Stepped):
            self._full_for = event.full_for
            for token in event.tokens:
                stream = self._streams.get(token.id)
                if stream is not None:
                    stream.put(token)
                    if token.finish_reason is not None:
                        del self._streams[token.id]
        elif isinstance(event, messages.Accepted):
            if event.id in self._streams:
                self._streams[event.id].accept()
        elif isinstance(event, messages.Refused):
            self._streams.pop(event.id).fail(
                RequestRefused(event.reason)
                if event.retry_after is None
                else QueueFull(event.reason, event.retry_after)
            )
        elif isinstance(event, messages.Expired):
            self._full_for = None  # there is room, and perhaps no step any more that would say so
            self._streams.pop(event.id).fail(QueueTimeout(event.reason, event.retry_after))
        elif isinstance(event, messages.Aborted):
            self._full_for = None
            self._streams.pop(event.id).end(event.account)
        elif isinstance(event, messages.Stats):
            answer = self._stats.popleft()
            if not answer.done():
                answer.set_result(event.values)
        elif isinstance(event, messages.StartProgress):
            self.message = event.text
            self._report(event.text)
        elif isinstance(event, messages.EngineReady):
            self.model, self.state, self.message = event, "ready", "ready"
            self.settled.set()
        elif isinstance(event, messages.Broken):
            self._break(event.reason)

    def _break(self, reason: str) -> None:
        self.state, self.message = "broken", reason
        self._fail_all()
        self.settled.set()
        self.broken.set()

    def _fail_all(self) -> None:
        error = EngineError(f"the engine is {self.state}: {self.message}")
        for stream in self._streams.values():
            stream.fail(error)
        for answer in self._stats:
            if not answer.done():
                answer.set_exception(error)
        self._streams.clear()
        self._stats.clear()
        self.settled.set()
