"""How each API is spoken: what is posted, and what a streamed message says. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from fgbench.client.streams import NulSeparated, ServerSentEvents, StreamError
from fgbench.workload.spec import RequestSpec


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
        data = _object(message)
        usage = data.get("usage") or {}
        choices = data.get("choices") or []
        return Piece(
            content=any(isinstance(c.get("text"), str) for c in choices),
            prompt_tokens=usage.get("prompt_tokens"),
            output_tokens=usage.get("completion_tokens"),
            server=_account(data),
            error=_error(data),
        )


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
        data = _object(message)
        usage = data.get("usage") or {}
        return Piece(
            content="text" in data,
            prompt_tokens=usage.get("prompt_tokens"),
            output_tokens=usage.get("completion_tokens"),
            server=_account(data),
            error=_error(data),
        )


ENDPOINTS: dict[str, Endpoint] = {"completions": Completions(), "generate": Generate()}


def endpoint_called(name: str) -> Endpoint:
    """Raises ValueError for a name that is none of ``ENDPOINTS``."""
    if name not in ENDPOINTS:
        raise ValueError(f"there is no endpoint {name!r}; there are {', '.join(ENDPOINTS)}")
    return ENDPOINTS[name]


def error_message(body: bytes) -> str:
    """The sentence in an error response, OpenAI-shaped, FastAPI-shaped or plain; at most 300 characters."""
    try:
        message = _error(_object(body))
    except StreamError:
        message = None
    text = message or body.decode("utf-8", "replace")
    return " ".join(text.split())[:300]


def _user(spec: RequestSpec) -> dict[str, str]:
    """Left out where there is none: not every server knows the field."""
    return {"user": spec.user} if spec.user else {}


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _object(message: bytes) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise StreamError(f"not JSON: {message[:80]!r}") from None
    if not isinstance(data, dict):
        raise StreamError(f"not a JSON object: {message[:80]!r}")
    return data


def _error(data: dict[str, Any]) -> str | None:
    error = data.get("error", data.get("detail"))
    if error is None:
        return None
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _account(data: dict[str, Any]) -> dict[str, float] | None:
    account = data.get("fgengine")
    if not isinstance(account, dict):
        return None
    return {str(k): float(v) for k, v in account.items() if isinstance(v, int | float)}
