"""The server's side of the channel to the engine: sends requests and receives the tokens of each one."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import msgspec

from fgengine.config import EngineConfig
from fgengine.request import SamplingParams
from fgengine.scheduling.refusal import QueueFull, QueueTimeout, RequestRefused
from fgengine.server import messages
from fgengine.server.messages import Account, NewToken, PromptToken

State = Literal["starting", "ready", "hung", "broken", "stopping"]
"""hung: the engine has not answered for too long."""


STARTING = "starting the engine's process"
RUNNING: tuple[State, ...] = ("ready", "hung")
"""States in which the engine may have open requests."""


class EngineError(RuntimeError):
    """The engine serves no requests now; the message says why."""


class Draining(EngineError):
    """The server takes no new requests, because it is shutting down."""


class TokenStream:
    """The tokens of one request, as they arrive from the engine.

    It stores how to make an error, not the error: an error's traceback would refer to the handler, and so
    keep the prompt until the garbage collector runs.
    """

    def __init__(self, id: str) -> None:
        self.id = id
        self._tokens: list[NewToken] = []
        self._prompt: list[PromptToken] = []
        """The prompt's log probabilities, until the first token."""
        self._account: Account | None = None
        self._make_error: Callable[[], Exception] | None = None
        self._accepted, self._news, self._ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def next(self) -> list[NewToken]:
        """Wait for tokens and return all since the last call: at least one, unless the request has ended.

        Raises:
            EngineError: the engine is broken or stopping.
            QueueTimeout: the engine dropped the request before it started.
        """
        await self._news.wait()
        if not self._tokens:
            self._check()
        tokens, self._tokens = self._tokens, []
        if not self._ended.is_set():
            self._news.clear()
        return tokens

    async def account(self) -> Account:
        """Wait for the end of the request; return its accounting. Raises EngineError or QueueTimeout."""
        await self._ended.wait()
        self._check()
        assert self._account is not None
        return self._account

    async def accepted(self) -> None:
        """Wait until the engine has accepted the request. Raises RequestRefused or EngineError."""
        await self._accepted.wait()
        self._check()

    def accept(self) -> None:
        """Record that the engine has accepted the request."""
        self._accepted.set()

    def put(self, token: NewToken) -> None:
        """Add a token from the engine."""
        if self._prompt:
            token, self._prompt = msgspec.structs.replace(token, prompt=self._prompt), []
        self._tokens.append(token)
        if token.account is not None:
            self.end(token.account)
        self._news.set()

    def put_prompt(self, tokens: list[PromptToken]) -> None:
        """Add the log probabilities of some prompt tokens; the first token will carry all of them."""
        self._prompt += tokens

    def end(self, account: Account) -> None:
        """Record that the request has ended."""
        if not self._ended.is_set():
            self._account = account
            self._ended.set()
        self._news.set()

    def fail(self, make_error: Callable[[], Exception]) -> None:
        """Make all current and later waits raise an error."""
        if not self._ended.is_set():
            self._make_error = make_error
        for event in (self._accepted, self._ended, self._news):
            event.set()

    def _check(self) -> None:
        if self._make_error is not None:
            raise self._make_error()


class EngineClient:
    """Exchanges ``messages`` with the engine over a connected socket. For one event loop only."""

    def __init__(self, report: Callable[[str], None] = lambda text: None) -> None:
        self.state: State = "starting"
        self.message = STARTING
        """The progress while the engine starts; the reason when it is broken."""
        self.model: messages.EngineReady | None = None
        self.settled = asyncio.Event()
        """Set when the engine is ready, broken or stopping."""
        self.broken = asyncio.Event()
        self.hung = asyncio.Event()
        """Set while the engine does not answer."""
        self.drops_waiting = False
        """Whether the engine may drop an accepted request before its first token."""
        self._full_for: float | None = None
        """While the queue is full: seconds after which a client should retry, as the engine last reported."""
        self._report = report
        self._streams: dict[str, TokenStream] = {}
        self._stats: deque[asyncio.Future[dict[str, Any]]] = deque()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def connect(self, channel: socket.socket, config: EngineConfig) -> None:
        """Start the exchange of messages. The engine is ready only when ``state`` is "ready"."""
        reader, self._writer = await asyncio.open_connection(sock=channel)
        self.drops_waiting = config.queue_timeout is not None
        self.state, self.message = "starting", STARTING
        for event in (self.settled, self.broken, self.hung):
            event.clear()
        self._full_for = None
        self._send(messages.Start(config))
        self._reading = asyncio.create_task(self._read(reader))

    async def close(self) -> None:
        """Close the channel. Open requests fail, and the engine's process ends when it sees the close."""
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
        """Send a request to the engine and wait until the engine has accepted it.

        ``arrival`` is the time when the request arrived, on the engine's clock (seconds).

        Raises:
            RequestRefused: the request can never run; or, as its subclass QueueFull, it cannot run now.
            EngineError: the engine is starting, broken or stopping.
        """
        self.check_ready()
        stream = self._streams[id] = TokenStream(id)
        self._send(messages.Add(id, prompt, params, arrival, user))
        try:
            await stream.accepted()
        except asyncio.CancelledError:  # the client disconnected before the engine accepted the request
            self.abort(id)
            raise
        return stream

    def abort(self, id: str) -> None:
        """Ask the engine to abort a request that still runs. Its stream then ends with its accounting."""
        if id in self._streams and self.state in RUNNING:
            self._send(messages.Abort(id))

    async def stats(self) -> dict[str, Any]:
        """Return the engine's counters, read between two steps. Raises EngineError."""
        if self.state not in RUNNING:
            self.check_ready()
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._stats.append(answer)
        self._send(messages.AskStats())
        return await answer

    def check_ready(self) -> None:
        """Raise EngineError unless requests can be served."""
        if self.state != "ready":
            raise EngineError(f"the engine is {self.state}: {self.message}")

    async def answers(self, within: float) -> None:
        """Wait until the engine answers. While it has not answered for ``within`` seconds, its state is hung.

        Raises EngineError if it breaks.
        """
        asking = asyncio.ensure_future(self.stats())
        try:
            await asyncio.wait([asking], timeout=within)
            if not asking.done() and self.state == "ready":
                self.state = "hung"
                self.message = f"it has not answered for {within:.0f} s"
                self.hung.set()
            await asking
        finally:
            asking.cancel()
        if self.state == "hung":
            self.state, self.message = "ready", "ready"
            self.hung.clear()

    def check_accepting(self) -> None:
        """Raise an error if the engine would refuse a request; called before the request is read.

        The check uses the state after the engine's last step. The engine checks again when it gets the
        request.

        Raises:
            QueueFull: the queue is full.
            EngineError: the engine is starting, broken or stopping.
        """
        self.check_ready()
        if self._full_for is not None:
            raise QueueFull("the queue is full (max_queue, max_queue_tokens)", self._full_for)

    def _send(self, command: messages.Command) -> None:
        assert self._writer is not None
        self._writer.write(messages.frame(command))

    async def _ending(self) -> str:
        """Describe how the engine's process ended, after it closed the channel."""
        return "its process closed the channel"

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while self.state != "broken":
                header = await reader.readexactly(messages.LENGTH_BYTES)
                body = await reader.readexactly(int.from_bytes(header, "big"))
                event = messages.read_event(body)
                self._handle(event)
                if isinstance(event, messages.PromptPart):
                    await asyncio.sleep(0)  # others get their turn before the next part is read
        except (asyncio.IncompleteReadError, ConnectionError):
            self.fail(await self._ending())
        except Exception as error:  # after any error, no request may wait for an answer that cannot come
            self.fail(f"its process sent a message that the server cannot handle: {error!r}")

    def _handle(self, event: messages.Event) -> None:
        if isinstance(event, messages.Stepped):
            self._full_for = event.full_for
            for token in event.tokens:
                stream = self._streams.get(token.id)
                if stream is not None:
                    stream.put(token)
                    if token.finish_reason is not None:
                        del self._streams[token.id]
        elif isinstance(event, messages.PromptPart):
            if event.id in self._streams:
                self._streams[event.id].put_prompt(event.tokens)
        elif isinstance(event, messages.Accepted):
            if event.id in self._streams:
                self._streams[event.id].accept()
        elif isinstance(event, messages.Refused):
            self._streams.pop(event.id).fail(
                partial(RequestRefused, event.reason, event.field)
                if event.retry_after is None
                else partial(QueueFull, event.reason, event.retry_after)
            )
        elif isinstance(event, messages.Expired):
            self._full_for = None  # the queue has room now, and perhaps no more step will report this
            self._streams.pop(event.id).fail(partial(QueueTimeout, event.reason, event.retry_after))
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
            self.fail(event.reason)

    def fail(self, reason: str) -> None:
        """Record that the engine cannot serve requests any more. Open requests end with an error."""
        self.state, self.message = "broken", reason
        self._fail_all()
        self.settled.set()
        self.broken.set()

    def _fail_all(self) -> None:
        make_error = partial(EngineError, f"the engine is {self.state}: {self.message}")
        for stream in self._streams.values():
            stream.fail(make_error)
        for answer in self._stats:
            if not answer.done():
                answer.set_exception(make_error())
        self._streams.clear()
        self._stats.clear()
        self.settled.set()
