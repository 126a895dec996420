"""The forms of the server's answers, for its OpenAPI document.

The handlers make answers as dicts, which is faster. Tests compare them with these types.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from fgengine.server.client import State
from fgengine.server.tools import ToolCall

FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]


class ErrorDetails(msgspec.Struct):
    """What was wrong and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct):
    """An error, in OpenAI's form."""

    error: ErrorDetails


class Usage(msgspec.Struct):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(msgspec.Struct):
    """Log probabilities of a completion's tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None] | None
    text_offset: list[int]


class CompletionChoice(msgspec.Struct):
    """One text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class Completion(msgspec.Struct):
    """The answer of POST /v1/completions. ``fgengine``: how the request's time was spent, in seconds."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    fgengine: dict[str, float] | None = None


class CompletionChunk(msgspec.Struct):
    """One message of a streamed completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    fgengine: dict[str, float] | None = None


class ChatLogprobs(msgspec.Struct):
    """Log probabilities of a chat completion's tokens."""

    content: list[dict[str, Any]] | None
    refusal: None


class ChatMessage(msgspec.Struct):
    """The assistant's message."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(msgspec.Struct):
    """One message."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason


class ChatCompletion(msgspec.Struct):
    """The answer of POST /v1/chat/completions. ``fgengine``: how the time was spent, in seconds."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    fgengine: dict[str, float] | None = None


class FunctionDelta(msgspec.Struct):
    """What a message adds to a call: the name comes once, the arguments in pieces."""

    arguments: str
    name: str | None = None


class ToolCallDelta(msgspec.Struct):
    """What a message adds to a call; the first one has the id, the type and the name."""

    index: int
    function: FunctionDelta
    id: str | None = None
    type: Literal["function"] | None = None


class ChatDelta(msgspec.Struct):
    """What a message adds to the assistant's."""

    content: str | None = None
    role: Literal["assistant"] | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChatChunkChoice(msgspec.Struct):
    """What a message adds to one choice."""

    index: int
    delta: ChatDelta
    finish_reason: ChatFinishReason | None
    logprobs: ChatLogprobs | None = None


class ChatCompletionChunk(msgspec.Struct):
    """One message of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    fgengine: dict[str, float] | None = None


class Generated(msgspec.Struct):
    """The answer of POST /generate."""

    text: str | list[str]
    usage: Usage
    fgengine: dict[str, float] | None = None


class Model(msgspec.Struct):
    """The model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    permission: list[Any]
    max_model_len: int
    vocab_size: int


class ModelList(msgspec.Struct):
    """The answer of GET /v1/models."""

    object: Literal["list"]
    data: list[Model]


class Health(msgspec.Struct):
    """The state of the engine, or of a server that drains, and a sentence about it."""

    status: Literal[State, "draining"]
    message: str


class Version(msgspec.Struct):
    """The version of the package."""

    version: str


class ServerInfo(msgspec.Struct):
    """The version and the engine's settings by name."""

    version: str
    settings: dict[str, Any]


class Live(msgspec.Struct):
    """The server's process answers."""

    status: Literal["live"]


class Tokenized(msgspec.Struct):
    """The tokens of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(msgspec.Struct):
    """The text of tokens."""

    prompt: str
