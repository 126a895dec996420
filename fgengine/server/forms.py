"""The two forms of answers, completions and chat completions, and the usage that both have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from fgengine.server import logprobs
from fgengine.server.logprobs import Listed
from fgengine.server.schemas import Wish
from fgengine.text import TextCodec


class Form(Protocol):
    """The parts of an answer whose form differs between completions and chat completions."""

    object: str
    chunk_object: str
    id_prefix: str
    prompt_field: str
    """The field that has the prompt."""
    default_max_tokens: int | None
    """None: as many tokens as fit."""

    def complete(self, text: str) -> dict[str, Any]:
        """Return the fields of a complete answer's choice."""
        ...

    def chunk(self, text: str, first: bool) -> dict[str, Any]:
        """Return the fields of one streamed choice."""
        ...

    def logprobs(self, listed: Sequence[Listed], wish: Wish, codec: TextCodec) -> dict[str, Any]:
        """Return the log probabilities of a choice."""
        ...


class CompletionForm:
    """The form of completions; see ``Form``."""

    object = chunk_object = "text_completion"
    id_prefix = "cmpl"
    prompt_field = "prompt"
    default_max_tokens: int | None = 16

    def complete(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def chunk(self, text: str, first: bool) -> dict[str, Any]:
        return {"text": text}

    def logprobs(self, listed: Sequence[Listed], wish: Wish, codec: TextCodec) -> dict[str, Any]:
        return logprobs.for_completion(listed, codec, wish.logprobs or 0, as_ids=wish.names_as_ids)


class ChatForm:
    """The form of chat completions; see ``Form``."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl"
    prompt_field = "messages"
    default_max_tokens: int | None = None

    def complete(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def chunk(self, text: str, first: bool) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": text} if first else {"content": text}}

    def logprobs(self, listed: Sequence[Listed], wish: Wish, codec: TextCodec) -> dict[str, Any]:
        return logprobs.for_chat(listed, codec, wish.logprobs or 0, as_ids=wish.names_as_ids)


def usage(prompt_tokens: int, output_tokens: int) -> dict[str, int]:
    """Return the numbers of tokens, in OpenAI's format."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
    }
