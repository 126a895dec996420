"""Generates text for one request: converts tokens to text, applies stop strings, counts and aborts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any
from uuid import uuid4

from fgengine.clock import WallClock
from fgengine.config import EngineConfig
from fgengine.request import FinishReason, SamplingParams
from fgengine.server.client import EngineClient, EngineError, TokenStream
from fgengine.server.connections import ConnectionCounters
from fgengine.server.messages import Account, NewToken
from fgengine.text import StopStrings, TextCodec


@dataclass(frozen=True, slots=True)
class Piece:
    """The text that one token adds.

    The text is empty while a character, or a possible stop string, is incomplete.
    """

    text: str
    token: int
    logprob: float | None = None
    finish_reason: FinishReason | None = None


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
        stops: Sequence[str],
        prompt: Sequence[int],
    ) -> None:
        self._stream = stream
        self._engine = engine
        self._text = codec.detokenizer(prompt)
        self._stops = StopStrings(stops) if stops else None
        self.id = stream.id
        self.output_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.accounting: dict[str, float] = {}
        """The engine's accounting of the request, set with the last piece: seconds of each phase,
        preemptions, bytes moved."""

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Yield lists of pieces, one piece for each token; a list holds the tokens that arrived together.

        Raises:
            EngineError: the engine is broken or stopping.
            QueueTimeout: the engine dropped the request before it started.
        """
        while self.finish_reason is None:
            batch: list[Piece] = []
            for token in await self._stream.next():
                batch.append(self._piece(token))
                if self.finish_reason is not None:
                    self.accounting = _until_now(await self._stream.account())
                    break
            yield batch

    def _piece(self, token: NewToken) -> Piece:
        self.output_tokens += 1
        reason = token.finish_reason
        text = "" if reason == "stop" else self._text.add(token.token)  # a stop token is not part of the text
        if reason is not None:
            text += self._text.finish()
        if self._stops is not None:
            text = self._stops.add(text)
            if self._stops.stopped:
                if reason is None:
                    self._engine.abort(self.id)
                reason = "stop"
            elif reason is not None:
                text += self._stops.finish()
        self.finish_reason = reason
        return Piece(text, token.token, token.logprob, reason)


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
        self.connections = ConnectionCounters()
        self.created = int(time.time())
        """When the server started, in seconds since 1970."""
        self.instance = uuid4().hex[:8]
        """Part of the ids of answers, so that they differ from those before a restart."""
        self._codec: TextCodec | None = None
        self._ids = count()

    @property
    def codec(self) -> TextCodec:
        """The tokenizer. Raises EngineError while it is being loaded."""
        if self._codec is None:
            raise EngineError("the server is starting: loading the tokenizer")
        return self._codec

    @codec.setter
    def codec(self, codec: TextCodec) -> None:
        self._codec = codec

    @asynccontextmanager
    async def generate(
        self,
        prompt: list[int],
        params: SamplingParams,
        stops: Sequence[str],
        *,
        arrival: float,
        user: str = "",
    ) -> AsyncIterator[Generation]:
        """Run a request on the engine. Leaving the block before its end aborts the request.

            async with service.generate(prompt, params, stops, arrival=arrival) as generation:
                async for batch in generation.pieces():
                    ...

        ``arrival``: the time when the request was read, on the engine's clock (seconds). So the accounting
        includes the wait for the engine's current step.

        Raises:
            RequestRefused: the request can never run; or, as its subclass QueueFull, it cannot run now. The
                message says why.
            EngineError: the engine is starting, broken or stopping.
        """
        id = f"cmpl-{next(self._ids)}"
        stream = await self.engine.add(id, prompt, params, arrival=arrival, user=user)
        generation = Generation(stream, self.engine, self.codec, stops, prompt)
        try:
            yield generation
        finally:
            if generation.finish_reason is None:
                self.engine.abort(generation.id)

    async def stats(self) -> dict[str, Any]:
        """Return the engine's counters and the server's. Raises EngineError."""
        return {**await self.engine.stats(), **asdict(self.counters), **asdict(self.connections)}
