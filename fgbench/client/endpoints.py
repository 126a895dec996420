"""The APIs: makes the bodies of requests, and reads streamed messages. Has no side effects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from fgbench.client.streams import NulSeparated, ServerSentEvents, StreamError
from fgbench.workload.workload import RequestSpec


@dataclass(frozen=True, slots=True)
class Piece:
    """The content of one streamed message."""

    content: bool = False
    """Whether it carries output; its text may be empty, as long as a character is incomplete."""
    last: bool = False
    """Whether the answer is complete after it."""
    prompt_tokens: int | None = None
    """Prompt tokens in the server's usage."""
    output_tokens: int | None = None
    """Output tokens in the server's usage."""
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache, in the server's usage."""
    server: dict[str, float] | None = None
    """fgengine's accounting of the request."""
    error: str | None = None


QUEUE_TIMEOUT = "queue_timeout"
"""Error code of fgengine's server for a request that waited too long."""
CONTENT = Piece(content=True)
"""The content of nearly all messages; shared, to save time."""


ABSENT = msgspec.Raw()
"""A missing text. Texts are not decoded, because only their presence matters."""


class Usage(msgspec.Struct):
    """The server's count of tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Any = None
    """An object with ``cached_tokens``; vLLM sends it with --enable-prompt-tokens-details."""

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens found in the prefix cache; None: not reported."""
        details = self.prompt_tokens_details
        found = details.get("cached_tokens") if isinstance(details, dict) else None
        return found if isinstance(found, int) and not isinstance(found, bool) else None


class Choice(msgspec.Struct):
    """One output of a message."""

    text: msgspec.Raw = ABSENT


class Message(msgspec.Struct):
    """The fields of a streamed message that are read; other fields are skipped without decoding."""

    choices: list[Choice] | None = None
    text: msgspec.Raw = ABSENT
    usage: Usage | None = None
    fgengine: dict[str, Any] | None = None
    error: Any = None
    detail: Any = None


class Splitter(Protocol):
    """Splits a byte stream into messages."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the messages that ``chunk`` completes."""
        ...

    def close(self) -> list[bytes]:
        """Return the messages that the end of the stream completes."""
        ...


class Endpoint(Protocol):
    """An API of a server."""

    @property
    def path(self) -> str:
        """Path of the API under the server's URL."""
        ...

    @property
    def ends_with_marker(self) -> bool:
        """Whether a stream without a ``last`` piece was cut off."""
        ...

    def body(self, spec: RequestSpec, model: str) -> bytes:
        """Return the body of the POST for a request."""
        ...

    def splitter(self) -> Splitter:
        """Return a new splitter for one answer."""
        ...

    def read(self, message: bytes) -> Piece:
        """Read one message. Raises StreamError if it is not a message of this API."""
        ...


class Completions:
    """OpenAI's /v1/completions, streamed, with vLLM's ``ignore_eos``.

    Decoding is greedy, so that every policy generates the same tokens, and sampling takes no time. The length
    of the output is forced, so the text does not matter.
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
    """POST /generate, the API of FastServe's and vLLM's old api_server.

    It has no usage and no closing marker. If the server adds no accounting of its own, a stream that ends
    well counts as complete, because ``ignore_eos`` forces the length.
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
    """Return the endpoint with this name. Raises ValueError if there is none."""
    if name not in ENDPOINTS:
        raise ValueError(f"there is no endpoint {name!r}: use {' or '.join(ENDPOINTS)}")
    return ENDPOINTS[name]


def error_message(body: bytes) -> str:
    """Return the message of an error response in OpenAI's or FastAPI's form or as plain text.

    At most 300 characters.
    """
    try:
        data = _message(body)
        message = _error(data.error if data.error is not None else data.detail)
    except StreamError:
        message = None
    text = message or body.decode("utf-8", "replace")
    return " ".join(text.split())[:300]


def rejection(status: int, body: bytes) -> str | None:
    """Return the kind of a rejection by an overloaded server; None if the response is not a rejection.

    ``http 429``: any server rejected the request. ``queue timeout``: fgengine's server accepted the request
    and dropped it before it started.
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
    """Return the field ``user``; empty without a user, because not every server knows the field."""
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
        cached_tokens=usage.cached_tokens,
        server=_account(data.fgengine),
        error=_error(error),
    )


def _error(error: Any) -> str | None:
    """Return the text of an error, which is a string or an object with a ``message``."""
    if error is None:
        return None
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _account(account: dict[str, Any] | None) -> dict[str, float] | None:
    if account is None:
        return None
    return {key: float(v) for key, v in account.items() if isinstance(v, int | float)}
