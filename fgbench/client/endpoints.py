"""How each API is spoken: what is posted, and what a streamed message says. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from fgbench.client.streams import NulSeparated, ServerSentEvents, StreamError
from fgbench.workload.workload import RequestSpec


@dataclass(frozen=True, slots=True)
class Piece:
    """What one streamed message said."""

    content: bool = False
    """It carries output, even where no whole character came of it yet."""
    last: bool = False
    """Nothing is missing from the answer after it."""
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    """The server's usage."""
    server: dict[str, float] | None = None
    """fgengine's account of the request."""
    error: str | None = None


QUEUE_TIMEOUT = "queue_timeout"
"""The code by which our server says so."""
CONTENT = Piece(content=True)
"""What nearly all messages say."""


ABSENT = msgspec.Raw()
"""Texts are not decoded: that they are there is all that counts."""


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Choice(msgspec.Struct):
    text: msgspec.Raw = ABSENT


class Message(msgspec.Struct):
    """What is read of a streamed message; whatever else it holds is skipped without being decoded."""

    choices: list[Choice] | None = None
    text: msgspec.Raw = ABSENT
    usage: Usage | None = None
    fgengine: dict[str, Any] | None = None
    error: Any = None
    detail: Any = None


class Splitter(Protocol):
    def feed(self, chunk: bytes) -> list[bytes]: ...
    def close(self) -> list[bytes]: ...


class Endpoint(Protocol):
    @property
    def path(self) -> str: ...
    @property
    def ends_with_marker(self) -> bool:
        """A stream that ends without a ``last`` piece was cut off."""
        ...

    def body(self, spec: RequestSpec, model: str) -> bytes: ...
    def splitter(self) -> Splitter: ...
    def read(self, message: bytes) -> Piece:
        """Raises StreamError for what is not this API's message."""
        ...


class Completions:
    """OpenAI's /v1/completions, streamed, with vLLM's ``ignore_eos``.

    Greedy: every policy then generates the same tokens, and sampling costs nothing that would blur the
    scheduling. The output's length is forced, so what is said does not matter.
    """

    path = "/v1/completions"
    ends_with_marker = True

    def body(self, spec: RequestSpec, model: str) -> bytes:
        return _json(
            {
                "model": model,
                "prompt": spec.prompt,
                "max_tokens": spec.output_tokens,
                "ignore_eos": True,
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True},
                **_user(spec),
            }
        )

    def splitter(self) -> Splitter:
        return ServerSentEvents()

    def read(self, message: bytes) -> Piece:
        if message.strip() == b"[DONE]":
            return Piece(last=True)
        data = _message(message)
        content = False
        for choice in data.choices or ():
            content = content or bytes(memoryview(choice.text)[:1]) == b'"'
        return _piece(data, content)


class Generate:
    """POST /generate as FastServe's and vLLM's old api_server speak it.

    It has no usage and no closing marker: where the server adds no account of its own, a stream that
    ends well is taken to hold the tokens asked for, which ``ignore_eos`` forces.
    """

    path = "/generate"
    ends_with_marker = False

    def body(self, spec: RequestSpec, model: str) -> bytes:
        prompt = "prompt" if isinstance(spec.prompt, str) else "prompt_token_ids"
        return _json(
            {
                prompt: spec.prompt,
                "n": 1,
                "best_of": 1,
                "use_beam_search": False,
                "temperature": 0.0,
                "top_p": 1.0,
                "max_tokens": spec.output_tokens,
                "ignore_eos": True,
                "stream": True,
                **_user(spec),
            }
        )

    def splitter(self) -> Splitter:
        return NulSeparated()

    def read(self, message: bytes) -> Piece:
        data = _message(message)
        return _piece(data, len(memoryview(data.text)) > 0)


ENDPOINTS: dict[str, Endpoint] = {"completions": Completions(), "generate": Generate()}


def endpoint_called(name: str) -> Endpoint:
    """Raises ValueError for a name that is none of ``ENDPOINTS``."""
    if name not in ENDPOINTS:
        raise ValueError(f"there is no endpoint {name!r}; there are {', '.join(ENDPOINTS)}")
    return ENDPOINTS[name]


def error_message(body: bytes) -> str:
    """The sentence in an error response, OpenAI-shaped, FastAPI-shaped or plain; at most 300 characters."""
    try:
        data = _message(body)
        message = _error(data.error if data.error is not None else data.detail)
    except StreamError:
        message = None
    text = message or body.decode("utf-8", "replace")
    return " ".join(text.split())[:300]


def rejection(status: int, body: bytes) -> str | None:
    """The class of a rejection, where a response says that its server has too much to do; None of others.

    ``http 429`` of any server; ``queue timeout`` where ours took the request and dropped it before its start.
    """
    if status == 429:
        return "http 429"
    if status != 503:
        return None
    try:
        error = _message(body).error
    except StreamError:
        return None
    return "queue timeout" if isinstance(error, dict) and error.get("code") == QUEUE_TIMEOUT else None


def _user(spec: RequestSpec) -> dict[str, str]:
    """Left out where there is none: not every server knows the field."""
    return {"user": spec.user} if spec.user else {}


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


_decode = msgspec.json.Decoder(Message).decode


def _message(message: bytes) -> Message:
    try:
        return _decode(message)
    except msgspec.ValidationError as error:
        raise StreamError(f"not this API's message ({error}): {message[:80]!r}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise StreamError(f"not JSON: {message[:80]!r}") from None


def _piece(data: Message, content: bool) -> Piece:
    error = data.error if data.error is not None else data.detail
    if content and data.usage is None and data.fgengine is None and error is None:
        return CONTENT
    usage = data.usage or Usage()
    return Piece(
        content=content,
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        server=_account(data.fgengine),
        error=_error(error),
    )


def _error(error: Any) -> str | None:
    """A string, or an object with a ``message``."""
    if error is None:
        return None
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _account(account: dict[str, Any] | None) -> dict[str, float] | None:
    if account is None:
        return None
    return {key: float(v) for key, v in account.items() if isinstance(v, int | float)}
