"""What the server and the engine's process say to each other: msgpack frames over a socket pair.

A frame is a 4-byte big-endian length and a msgpack-encoded tagged struct. Nothing is ever unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fgengine.config import EngineConfig
from fgengine.request import FinishReason, SamplingParams

LENGTH_BYTES = 4


class Start(msgspec.Struct, tag=True, frozen=True):
    """The first command: load this."""

    config: EngineConfig


class Add(msgspec.Struct, tag=True, frozen=True):
    """Answered by Accepted or Refused, then by tokens in Stepped until one has a finish reason, or by Expired
    before the first token."""

    id: str
    prompt: list[int]
    params: SamplingParams
    arrival: float
    """When the server had read it: seconds on the clock that all processes of a machine share."""
    user: str = ""


class Abort(msgspec.Struct, tag=True, frozen=True):
    """Answered by Aborted, unless the request is unknown or has ended by itself."""

    id: str


class AskStats(msgspec.Struct, tag=True, frozen=True):
    """Answered by Stats, in the order of asking."""


class StartProgress(msgspec.Struct, tag=True, frozen=True):
    """What the engine is doing while it starts, in a sentence."""

    text: str


class EngineReady(msgspec.Struct, tag=True, frozen=True):
    model_name: str
    max_model_len: int
    """Tokens."""
    vocab_size: int


class Accepted(msgspec.Struct, tag=True, frozen=True):
    id: str


class Refused(msgspec.Struct, tag=True, frozen=True):
    id: str
    reason: str
    retry_after: float | None = None
    """Seconds; set where the queue was full, so that the same request may be taken later."""


class Expired(msgspec.Struct, tag=True, frozen=True):
    """Accepted, but dropped: it waited for its start for too long."""

    id: str
    reason: str
    retry_after: float
    """Seconds."""


class Account(msgspec.Struct, frozen=True, array_like=True):
    """Where the time of a request went that has ended."""

    closed: float
    """When, on the clock of ``Add.arrival``."""
    values: dict[str, float]
    """``Request.accounting``."""


class NewToken(msgspec.Struct, frozen=True, array_like=True):
    """One generated token; the request's last one says why it ended and has its account."""

    id: str
    token: int
    logprob: float | None = None
    finish_reason: FinishReason | None = None
    account: Account | None = None


class Stepped(msgspec.Struct, tag=True, frozen=True):
    """All tokens of one step."""

    tokens: list[NewToken]
    full_for: float | None = None
    """While the queue is full: seconds after which a request is worth sending. None: there is room."""


class Aborted(msgspec.Struct, tag=True, frozen=True):
    id: str
    account: Account


class Stats(msgspec.Struct, tag=True, frozen=True):
    values: dict[str, Any]
    """As ``Engine.stats`` gives them: plain JSON."""


class Broken(msgspec.Struct, tag=True, frozen=True):
    """The engine cannot go on, or could not start; its process ends after this."""

    reason: str


Command = Start | Add | Abort | AskStats
Event = StartProgress | EngineReady | Accepted | Refused | Expired | Stepped | Aborted | Stats | Broken


def _encode_path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} has no place in a message")


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} has no place in a message")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_path)
_commands = msgspec.msgpack.Decoder(Command, dec_hook=_decode_path)
_events = msgspec.msgpack.Decoder(Event)


def frame(message: Command | Event) -> bytes:
    """The message as it goes over the wire, its length in front."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def read_command(body: bytes) -> Command:
    """Raises msgspec.DecodeError for anything that is not a command."""
    command: Command = _commands.decode(body)
    return command


def read_event(body: bytes) -> Event:
    """Raises msgspec.DecodeError for anything that is not an event."""
    event: Event = _events.decode(body)
    return event
