"""Generates the texts of a request: converts tokens to text, applies stop strings, counts and aborts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any, NamedTuple
from uuid import uuid4

from fgengine.clock import WallClock
from fgengine.config import EngineConfig
from fgengine.request import FinishReason, SamplingParams
from fgengine.scheduling.refusal import QueueTimeout
from fgengine.server.client import Draining, EngineClient, EngineError, TokenStream
from fgengine.server.connections import ConnectionCounters
from fgengine.server.encoding import Encoder
from fgengine.server.logs import current_entry
from fgengine.server.messages import Account, NewToken
from fgengine.server.timings import RequestTiming, RequestTimings
from fgengine.text import StopStrings, TextCodec

ENDED_BY_TOKEN = ("stop", "error")
"""Finish reasons with which the last token ends the text, and is no part of it."""
STATS_SECONDS = 10.0
"""Seconds within which the engine must have sent its counters."""


class Piece(NamedTuple):
    """The text that one token adds.

    The text is empty while a character, or a possible stop string, is incomplete.
    """

    text: str
    new: NewToken
    """The token, with its log probabilities if they were asked for."""
    finish_reason: FinishReason | None
    start: int
    """Characters of the output before this token. Tokens whose text appears together, as those of one
    character, start at the same place."""


class Ask(NamedTuple):
    """What one request of the engine is to generate."""

    prompt: list[int]
    params: SamplingParams
    stops: Sequence[str] = ()
    shows_stop: bool = False
    """Whether the text keeps the stop string or stop token that ended it."""


@dataclass(slots=True)
class ServerCounters:
    """Counters of POST requests since the server started."""

    requests_received: int = 0
    requests_finished: int = 0
    requests_aborted: int = 0
    """Requests whose client disconnected before the end."""
    requests_refused: int = 0
    """Invalid requests, answered with a 4xx status other than 429."""
    requests_rejected: int = 0
    """Requests that arrived while the queue was full, answered with 429."""
    requests_timed_out: int = 0
    """Requests dropped after the queue's timeout before they started, answered with 503."""
    requests_failed: int = 0
    """Requests that failed because the engine was starting, broke or stopped, or the server had an error."""
    requests_in_flight: int = 0


class Generation:
    """A request that the engine has accepted."""

    def __init__(
        self,
        stream: TokenStream,
        engine: EngineClient,
        codec: TextCodec,
        ask: Ask,
        timing: RequestTiming,
    ) -> None:
        self._stream = stream
        self._timing = timing
        self._engine = engine
        self._text = codec.detokenizer(ask.prompt)
        self._stops = StopStrings(ask.stops, keep=ask.shows_stop) if ask.stops else None
        self._shows_stop = ask.shows_stop
        self._min_tokens = ask.params.min_tokens
        self._characters = 0
        self.id = stream.id
        self.prompt = ask.prompt
        self.output_tokens = 0
        self.first_at: float | None = None
        """When its first token arrived (``time.monotonic``)."""
        self.finish_reason: FinishReason | None = None
        self.accounting: dict[str, float] = {}
        """The engine's accounting of the request, set with the last piece: seconds of each phase,
        preemptions, bytes moved."""

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Yield lists of pieces, one piece for each token.

        A list holds the tokens that arrived since the list before was taken. So a slow reader gets fewer and
        longer lists.

        Raises:
            EngineError: the engine is broken or stopping.
            QueueTimeout: the engine dropped the request before it started.
        """
        while self.finish_reason is None:
            batch: list[Piece] = []
            tokens = await self._stream.next()
            self._timing.received(len(tokens))
            if self.first_at is None:
                self.first_at = time.monotonic()
            for token in tokens:
                batch.append(self._piece(token))
                if self.finish_reason is not None:
                    self.accounting = _until_now(await self._stream.account())
                    self._timing.finished(self.finish_reason, self.accounting)
                    break
            yield batch

    def broke_off(self, reason: str) -> None:
        """Record that the answer will not be complete, unless it is; ``reason``: "abort" or "error"."""
        if self.finish_reason is None:
            self._timing.broke_off(reason)

    def _piece(self, token: NewToken) -> Piece:
        self.output_tokens += 1
        start = self._characters
        reason = token.finish_reason
        hidden = reason in ENDED_BY_TOKEN and not self._shows_stop  # a stop token is not part of the text
        text = "" if hidden else self._text.add(token.token)
        if reason is not None:
            text += self._text.finish()
        self._characters += len(text)
        if self._stops is not None and self.output_tokens > self._min_tokens:
            text = self._stops.add(text)
            if self._stops.stopped:
                if reason is None:
                    self._engine.abort(self.id)
                reason = "stop"
            elif reason is not None:
                text += self._stops.finish()
        self.finish_reason = reason
        return Piece(text, token, reason, start)


def _until_now(account: Account) -> dict[str, float]:
    """Add the time from the engine's last token until now to "decode", so that the phases cover all time."""
    late = WallClock().now() - account.closed
    return {**account.values, "decode": account.values["decode"] + late}


class Service:
    """The objects that all routes share: the engine, the tokenizer and the counters."""

    def __init__(self, engine: EngineClient, config: EngineConfig | None = None) -> None:
        self.engine = engine
        self.config = config
        """The engine's settings; None: not known."""
        self.counters = ServerCounters()
        self.draining = False
        """Whether only open requests are finished."""
        self.timings = RequestTimings()
        self.connections = ConnectionCounters()
        self.created = int(time.time())
        """When the server started, in seconds since 1970."""
        self.instance = uuid4().hex[:8]
        """Part of the ids of answers, so that they differ from those before a restart."""
        self._encoder: Encoder | None = None
        self.parsing = asyncio.Lock()
        """Held while a large body is parsed."""
        self._ids = count()

    @property
    def encoder(self) -> Encoder:
        """Encodes prompts. Raises EngineError while the tokenizer is being loaded."""
        if self._encoder is None:
            raise EngineError("the server is starting: loading the tokenizer")
        return self._encoder

    @encoder.setter
    def encoder(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @property
    def codec(self) -> TextCodec:
        """The tokenizer. Raises EngineError while it is being loaded."""
        return self.encoder.codec

    def check_accepting(self) -> None:
        """Raise an error if a new request would be refused; called before it is read.

        Raises:
            QueueFull: the queue is full.
            EngineError: the engine is starting, broken or stopping; or, as its subclass Draining, the server
                takes no new requests.
        """
        if self.draining:
            raise Draining("the server is shutting down: it only finishes the requests that it has")
        self.engine.check_accepting()

    @asynccontextmanager
    async def generate(
        self, asks: Sequence[Ask], *, arrival: float, user: str = ""
    ) -> AsyncIterator[list[Generation]]:
        """Run requests on the engine, together. Leaving the block aborts those that have not ended.

            async with service.generate([Ask(prompt, params)], arrival=arrival) as [generation]:
                async for batch in generation.pieces():
                    ...

        ``arrival``: the time when the request was read, on the engine's clock (seconds). So the accounting
        includes the wait for the engine's current step.

        Raises:
            RequestRefused: one of them can never run; or, as its subclass QueueFull, it cannot run now. The
                message says why.
            EngineError: the engine is starting, broken or stopping.
        """
        ids = [f"cmpl-{next(self._ids)}" for _ in asks]
        entry = current_entry()
        if entry is not None:
            entry.prompt_tokens += sum(len(ask.prompt) for ask in asks)
        adding = [
            self.engine.add(id, ask.prompt, ask.params, arrival=arrival, user=user)
            for id, ask in zip(ids, asks, strict=True)
        ]
        generations: list[Generation] = []
        try:
            streams = await asyncio.gather(*adding) if len(adding) > 1 else [await adding[0]]
            for stream, ask in zip(streams, asks, strict=True):
                timing = self.timings.request(len(ask.prompt), ask.params.max_tokens, arrival)
                generations.append(Generation(stream, self.engine, self.codec, ask, timing))
            if entry is not None:
                entry.generations += generations
            yield generations
        except BaseException as error:
            if not isinstance(error, QueueTimeout):
                left = isinstance(error, asyncio.CancelledError | ConnectionError)
                for generation in generations:
                    generation.broke_off("abort" if left else "error")
            raise
        finally:
            for id in ids:
                self.engine.abort(id)  # does nothing for a request that has ended

    async def stats(self) -> dict[str, Any]:
        """Return the engine's counters and the server's.

        Raises EngineError, also if the engine does not answer in time.
        """
        if self.engine.state == "hung":
            self.engine.check_ready()
        try:
            counters = await asyncio.wait_for(self.engine.stats(), STATS_SECONDS)
        except asyncio.TimeoutError:
            raise EngineError(
                f"the engine has not answered for {STATS_SECONDS:g} s: its step takes long, or it is stopped"
            ) from None
        return {**counters, **asdict(self.counters), **asdict(self.connections)}
