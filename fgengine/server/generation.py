"""One request from prompt to text: the engine's tokens made text, stop strings, counting, aborting."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from fgengine.clock import WallClock
from fgengine.request import FinishReason, SamplingParams
from fgengine.server.client import EngineClient, EngineError, TokenStream
from fgengine.server.messages import Account, NewToken
from fgengine.text import StopStrings, TextCodec


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token adds: often a word's part, nothing while a character or stop string is unfinished."""

    text: str
    token: int
    logprob: float | None = None
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class ServerCounters:
    """The server's own, since it started."""

    requests_received: int = 0
    requests_finished: int = 0
    requests_aborted: int = 0
    """The client left before the end."""
    requests_refused: int = 0
    """The client's mistake: answered with a 4xx other than 429."""
    requests_rejected: int = 0
    """The queue was full: answered with 429."""
    requests_timed_out: int = 0
    """Dropped after the queue's timeout, before they had started: answered with 503."""
    requests_failed: int = 0
    """Ours: the engine was not ready, broke down or was stopped under them."""
    requests_in_flight: int = 0


class Generation:
    """A request that the engine has taken."""

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
        """The engine's account of the request, known with its last piece: seconds a phase, preemptions,
        bytes moved."""

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """One piece a token, together with those that came at the same time.

        Raises:
            EngineError: the engine broke down or stops.
            QueueTimeout: the engine dropped the request, which had not started.
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
    """The last token's way from the engine to its answer is decode too: all the waiting is in the account."""
    late = WallClock().now() - account.closed
    return {**account.values, "decode": account.values["decode"] + late}


class Service:
    """What the routes share: the engine, the tokenizer and the counters."""

    def __init__(self, engine: EngineClient) -> None:
        self.engine = engine
        self.counters = ServerCounters()
        self._codec: TextCodec | None = None
        self._ids = count()

    @property
    def codec(self) -> TextCodec:
        """Raises EngineError while the tokenizer is being loaded."""
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
        """Have the engine take a request; leaving the block before its end aborts it.

        ``arrival``: when it had been read, on the engine's clock, so that what it waits for the engine's step
        to end is in its account.

        Raises:
            RequestRefused: it could never run, or, as a QueueFull, not now; the message says why.
            EngineError: the engine is not ready, breaks down or stops.
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
        """The engine's counters and the server's. Raises EngineError."""
        return {**await self.engine.stats(), **asdict(self.counters)}
