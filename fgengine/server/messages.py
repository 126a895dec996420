"""The messages between the server and the engine's process: msgpack frames over a socket pair.

A frame is a 4-byte big-endian length and a msgpack-encoded tagged struct. pickle is never used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fgengine.config import EngineConfig
from fgengine.request import FinishReason, SamplingParams

LENGTH_BYTES = 4
PROMPT_PART_TOKENS = 512
"""Maximum number of tokens in a PromptPart: with 20 alternatives for each, it takes about 150 KB."""


class Start(msgspec.Struct, tag=True, frozen=True):
    """The first command: start an engine with this configuration."""

    config: EngineConfig


class Add(msgspec.Struct, tag=True, frozen=True):
    """Adds a request.

    Answered by Accepted or Refused. After Accepted come tokens in Stepped until one has a finish reason, or
    Expired before the first token. If asked for, PromptParts come before the first token.
    """

    id: str
    prompt: list[int]
    params: SamplingParams
    arrival: float
    """When the server had read it, in seconds on the monotonic clock, which all processes share."""
    user: str = ""


class Abort(msgspec.Struct, tag=True, frozen=True):
    """Aborts a request. Answered by Aborted, unless the request is unknown or has ended."""

    id: str


class AskStats(msgspec.Struct, tag=True, frozen=True):
    """Asks for the counters. Answered by Stats, in the order of the questions."""


class StartProgress(msgspec.Struct, tag=True, frozen=True):
    """A sentence about the engine's progress while it starts."""

    text: str


class EngineReady(msgspec.Struct, tag=True, frozen=True):
    """The engine has started and accepts requests."""

    model_name: str
    max_model_len: int
    """Maximum tokens of a request."""
    vocab_size: int
    longest_step: float = 0.0
    """Seconds that a step may take, by a careful estimate; 0: not known."""
    room: int | None = None
    """Number of requests that the idle engine takes at once; None: any number."""


class Accepted(msgspec.Struct, tag=True, frozen=True):
    """The engine has accepted the request."""

    id: str


class Refused(msgspec.Struct, tag=True, frozen=True):
    """The engine has refused the request."""

    id: str
    reason: str
    retry_after: float | None = None
    """Seconds after which to try again; set only if the queue was full."""
    field: str | None = None
    """``RequestRefused.field``."""


class Expired(msgspec.Struct, tag=True, frozen=True):
    """The engine has dropped an accepted request, because it waited too long for its start."""

    id: str
    reason: str
    retry_after: float
    """Seconds after which to try again."""


class Account(msgspec.Struct, frozen=True, array_like=True):
    """The accounting of a request that has ended: how its time was spent."""

    closed: float
    """End of the request, in seconds on the clock of ``Add.arrival``."""
    values: dict[str, float]
    """The result of ``Request.accounting``."""


class PromptToken(msgspec.Struct, frozen=True, array_like=True):
    """The log probabilities at a prompt token, given the tokens before it."""

    logprob: float | None
    """Natural; None for the prompt's first token."""
    top: list[tuple[int, float]]
    """The most probable tokens in its place with their log probabilities, the most probable first."""


class PromptPart(msgspec.Struct, tag=True, frozen=True):
    """Some tokens of a prompt whose log probabilities were asked for.

    All parts of a prompt are sent in order, before the request's first token. One message for a long prompt
    would take megabytes, and other answers would wait while it is read.
    """

    id: str
    tokens: list[PromptToken]


class NewToken(msgspec.Struct, frozen=True, array_like=True):
    """One generated token. The last one of a request has the finish reason and the accounting."""

    id: str
    token: int
    logprob: float | None = None
    finish_reason: FinishReason | None = None
    account: Account | None = None
    top: list[tuple[int, float]] | None = None
    """The most probable tokens in its place with their log probabilities, the most probable first; None
    unless requested."""
    prompt: list[PromptToken] | None = None
    """With the first token: every token of the prompt; None unless requested. It is not sent: the receiver of
    the ``PromptPart`` messages sets it."""


class Stepped(msgspec.Struct, tag=True, frozen=True):
    """All tokens of one step."""

    tokens: list[NewToken]
    full_for: float | None = None
    """While the queue is full: seconds after which to send a request. None: the queue is not full."""


class Aborted(msgspec.Struct, tag=True, frozen=True):
    """The engine has aborted the request."""

    id: str
    account: Account


class Stats(msgspec.Struct, tag=True, frozen=True):
    """The engine's counters."""

    values: dict[str, Any]
    """The result of ``Engine.stats``; JSON types only."""


class Broken(msgspec.Struct, tag=True, frozen=True):
    """The engine has failed or could not start. Its process ends after this message."""

    reason: str


Command = Start | Add | Abort | AskStats
Event = (
    StartProgress
    | EngineReady
    | Accepted
    | Refused
    | Expired
    | PromptPart
    | Stepped
    | Aborted
    | Stats
    | Broken
)


def _encode_path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"a message cannot contain {type(value).__name__}")


def _decode_path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"a message cannot contain {kind.__name__}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_path)
_commands = msgspec.msgpack.Decoder(Command, dec_hook=_decode_path)
_events = msgspec.msgpack.Decoder(Event)


def frame(message: Command | Event) -> bytes:
    """Encode a message, with its length in front."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def read_command(body: bytes) -> Command:
    """Decode a command. Raises msgspec.DecodeError for any other content."""
    command: Command = _commands.decode(body)
    return command


def read_event(body: bytes) -> Event:
    """Decode an event. Raises msgspec.DecodeError for any other content."""
    event: Event = _events.decode(body)
    return event
