"""The APIs: makes the bodies of requests, and reads streamed messages. Has no side effects."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from fgbench.client.streams import NulSeparated, ServerSentEvents, StreamError
from fgbench.spec.load import Load
from fgbench.workload.workload import Prompt, RequestSpec


@dataclass(frozen=True, slots=True)
class Piece:
    """The content of one streamed message."""

    content: bool = False
    """Whether it carries output."""
    empty: bool = False
    """Whether its text is empty. It may still carry a token, if a character is incomplete."""
    finished: str = ""
    """Why the answer ended (``finish_reason``): ``length``, ``stop``, ...; empty if it does not say."""
    texts: tuple[bytes, ...] = ()
    """Its text as a JSON string, if the endpoint keeps texts."""
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
LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
"""The JSON escape of one half of a surrogate pair without the other half, which some servers send."""


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


class Delta(msgspec.Struct, frozen=True):
    """What a message of a chat adds."""

    content: msgspec.Raw = ABSENT
    reasoning_content: msgspec.Raw = ABSENT
    reasoning: msgspec.Raw = ABSENT
    """The same in newer versions of vLLM."""
    tool_calls: msgspec.Raw = ABSENT


NOTHING = Delta()


class Choice(msgspec.Struct):
    """One output of a message."""

    text: msgspec.Raw = ABSENT
    delta: Delta = NOTHING
    finish_reason: msgspec.Raw = ABSENT


class Message(msgspec.Struct):
    """The fields of a streamed message that are read; other fields are skipped without decoding."""

    choices: list[Choice] | None = None
    text: msgspec.Raw = ABSENT
    usage: Usage | None = None
    fgengine: dict[str, Any] | None = None
    error: Any = None
    detail: Any = None
    object: Any = None
    message: Any = None

    @property
    def problem(self) -> str | None:
        """The text of an error in one of the usual forms; None if the message is no error."""
        if self.error:
            return _error(self.error)
        if self.object == "error" and self.message:
            return _error(self.message)
        return _error(self.detail) if self.detail else None


class Splitter(Protocol):
    """Splits a byte stream into messages."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the messages that ``chunk`` completes."""
        ...

    def close(self) -> list[bytes]:
        """Return the messages that the end of the stream completes."""
        ...


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a load wants of each request, besides its prompt and length."""

    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields that are added to the body. They replace ours of the same name."""
    natural_lengths: bool = False
    """Whether the model ends its answers; otherwise their lengths are forced."""
    words: tuple[str, ...] = ()
    """Words to send as text in place of token ids, which are then positions in this tuple. Empty: ids."""
    keeps_text: bool = False
    """Whether the text of answers is kept, to count its tokens."""

    def prompt(self, spec: RequestSpec) -> Prompt:
        """Return the prompt that is sent: text, or token ids."""
        if self.words and not isinstance(spec.prompt, str):
            return "".join(map(self.words.__getitem__, spec.prompt))
        return spec.prompt

    def is_text(self, spec: RequestSpec) -> bool:
        """Whether the prompt is sent as text. It makes no prompt, unlike ``prompt``."""
        return bool(self.words) or isinstance(spec.prompt, str)

    def length(self, spec: RequestSpec) -> dict[str, Any]:
        """Return the fields that ask for a length. Not every server knows ``ignore_eos``."""
        forced = {} if self.natural_lengths else {"ignore_eos": True}
        return {"max_tokens": spec.output_tokens, **forced}


NO_WISHES = Wishes()


class Endpoint(Protocol):
    """An API of a server."""

    @property
    def path(self) -> str:
        """Path of the API under the server's URL."""
        ...

    @property
    def wishes(self) -> Wishes:
        """What the load wants of each request."""
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

    Decoding is greedy, so that every policy generates the same tokens, and sampling takes no time. Unless
    lengths are natural, the length of the output is forced, so the text does not matter.
    """

    path = "/v1/completions"
    ends_with_marker = True

    def __init__(self, wishes: Wishes = NO_WISHES) -> None:
        self.wishes = wishes

    def body(self, spec: RequestSpec, model: str) -> bytes:
        return _json(
            {
                "model": model,
                **self._prompt(spec),
                **self.wishes.length(spec),
                "temperature": 0.0,
                "stream": True,
                "stream_options": {"include_usage": True},
                **_user(spec),
                **self.wishes.extra,
            }
        )

    def _prompt(self, spec: RequestSpec) -> dict[str, Any]:
        return {"prompt": self.wishes.prompt(spec)}

    def _texts(self, choice: Choice) -> tuple[msgspec.Raw, ...]:
        return (choice.text,)

    def splitter(self) -> Splitter:
        return ServerSentEvents()

    def read(self, message: bytes) -> Piece:
        if message.strip() == b"[DONE]":
            return Piece(last=True)
        data = _message(message)
        content, empty, finished = False, True, ""
        kept: tuple[bytes, ...] = ()
        for choice in data.choices or ():
            for text in self._texts(choice):
                first = bytes(memoryview(text)[:1])
                if first in (b'"', b"["):  # calls of tools are a list
                    content = True
                    empty = empty and len(memoryview(text)) == 2
                    if self.wishes.keeps_text and first == b'"':
                        kept += (bytes(memoryview(text)),)
            reason = bytes(memoryview(choice.finish_reason))
            if reason[:1] == b'"':
                finished = reason[1:-1].decode("utf-8", "replace")
        return _piece(data, content, empty=content and empty, finished=finished, texts=kept)


class Chat(Completions):
    """OpenAI's /v1/chat/completions: each prompt is one message of a user.

    The server's template adds tokens to the prompt, so the server counts more than were sent.
    """

    path = "/v1/chat/completions"

    def _prompt(self, spec: RequestSpec) -> dict[str, Any]:
        prompt = self.wishes.prompt(spec)
        if spec.messages:
            roles = ("user", "assistant")
            return {
                "messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(spec.messages)]
            }
        if not isinstance(prompt, str):
            raise ValueError(
                "--endpoint chat sends texts, and this dataset has only lengths: add --send-text, or use a "
                "dataset of texts, such as --dataset sharegpt"
            )
        return {"messages": [{"role": "user", "content": prompt}]}

    def _texts(self, choice: Choice) -> tuple[msgspec.Raw, ...]:
        delta = choice.delta
        return delta.content, delta.reasoning_content, delta.reasoning, delta.tool_calls


class Generate:
    """POST /generate, the API of FastServe's and vLLM's old api_server.

    It has no usage and no closing marker. If the server adds no accounting of its own, a stream that ends
    well counts as complete, because ``ignore_eos`` forces the length.
    """

    path = "/generate"
    ends_with_marker = False

    def __init__(self, wishes: Wishes = NO_WISHES) -> None:
        if wishes.natural_lengths:
            raise ValueError(
                "--natural-lengths does not work with --endpoint generate, whose answers do not say how many "
                "tokens they have: leave one out"
            )
        self.wishes = wishes

    def body(self, spec: RequestSpec, model: str) -> bytes:
        sent = self.wishes.prompt(spec)
        prompt = "prompt" if isinstance(sent, str) else "prompt_token_ids"
        return _json(
            {
                prompt: sent,
                "n": 1,
                "best_of": 1,
                "use_beam_search": False,
                "temperature": 0.0,
                "top_p": 1.0,
                **self.wishes.length(spec),
                "stream": True,
                **_user(spec),
                **self.wishes.extra,
            }
        )

    def splitter(self) -> Splitter:
        return NulSeparated()

    def read(self, message: bytes) -> Piece:
        data = _message(message)
        return _piece(data, len(memoryview(data.text)) > 0)


ENDPOINTS: dict[str, Callable[[Wishes], Endpoint]] = {
    "completions": Completions,
    "chat": Chat,
    "generate": Generate,
}


def endpoint_called(name: str, wishes: Wishes = NO_WISHES) -> Endpoint:
    """Return the endpoint with this name.

    Raises ValueError if there is none, or if it cannot do what the load wants.
    """
    if name not in ENDPOINTS:
        raise ValueError(f"there is no endpoint {name!r}: use {', '.join(ENDPOINTS)}")
    return ENDPOINTS[name](wishes)


def error_message(body: bytes) -> str:
    """Return the message of an error response in OpenAI's or FastAPI's form or as plain text.

    At most 300 characters.
    """
    try:
        data = _message(body)
        message = data.problem
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
        return _decoded(message)
    except msgspec.ValidationError as error:
        raise StreamError(f"not this API's message ({error}): {message[:80]!r}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise StreamError(f"not JSON: {message[:80]!r}") from None


def _decoded(message: bytes) -> Message:
    """Decode a message. The text of an answer does not matter, so lone surrogates are replaced."""
    try:
        return _decode(message)
    except msgspec.DecodeError:
        repaired = LONE_SURROGATE.sub(rb"\\ufffd", message)
        if repaired == message:
            raise
        return _decode(repaired)


def _piece(
    data: Message, content: bool, *, empty: bool = False, finished: str = "", texts: tuple[bytes, ...] = ()
) -> Piece:
    problem = data.problem
    plain = content and not (empty or finished or texts)
    if plain and (data.usage, data.fgengine, problem) == (None, None, None):
        return CONTENT
    usage = data.usage or Usage()
    return Piece(
        content=content and usage.completion_tokens != 0,
        empty=empty,
        finished=finished,
        texts=texts,
        prompt_tokens=usage.prompt_tokens,
        output_tokens=_count(usage.completion_tokens),
        cached_tokens=usage.cached_tokens,
        server=_account(data.fgengine),
        error=problem,
    )


def _count(tokens: int | None) -> int | None:
    """Return a number of tokens; None for one below 0, which counts nothing."""
    return tokens if tokens is not None and tokens >= 0 else None


def wishes_of(load: Load) -> Wishes:
    """Return what a load wants of each request."""
    return Wishes(load.extra_body, load.natural_lengths, load.words, keeps_text=bool(load.tokenizer))


def _error(error: Any) -> str:
    """Return the text of an error, which is a string or an object with a ``message``."""
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _account(account: dict[str, Any] | None) -> dict[str, float] | None:
    if account is None:
        return None
    return {key: float(v) for key, v in account.items() if isinstance(v, int | float)}
