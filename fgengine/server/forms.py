"""The forms of answers: completions, chat completions, and chat completions that call functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import uuid4

from fgengine.request import FinishReason
from fgengine.server import logprobs
from fgengine.server.calls import ArgumentsReader, ListReader, Reader, joined
from fgengine.server.logprobs import Listed
from fgengine.server.schemas import Wish
from fgengine.text import TextCodec

Write = Callable[[str, FinishReason | None], dict[str, Any]]
"""Returns the fields of a streamed choice for the text that a message adds, and for the reason why the text
ends with it. It remembers what it has written."""


class Form(Protocol):
    """The parts of an answer whose form differs."""

    object: str
    chunk_object: str
    id_prefix: str
    prompt_field: str
    """The field that has the prompt."""
    default_max_tokens: int | None
    """None: as many tokens as fit."""

    def complete(self, text: str, reason: FinishReason | None) -> dict[str, Any]:
        """Return the fields of a complete answer's choice. ``reason``: why the text ends."""
        ...

    def writer(self) -> Write:
        """Return what writes one streamed choice."""
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

    def complete(self, text: str, reason: FinishReason | None) -> dict[str, Any]:
        return {"text": text, "finish_reason": reason}

    def writer(self) -> Write:
        return self.complete

    def logprobs(self, listed: Sequence[Listed], wish: Wish, codec: TextCodec) -> dict[str, Any]:
        return logprobs.for_completion(listed, codec, wish.logprobs or 0, as_ids=wish.names_as_ids)


class ChatForm:
    """The form of chat completions; see ``Form``."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    id_prefix = "chatcmpl"
    prompt_field = "messages"
    default_max_tokens: int | None = None

    def complete(self, text: str, reason: FinishReason | None) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}, "finish_reason": reason}

    def writer(self) -> Write:
        first = {"role": "assistant"}

        def write(text: str, reason: FinishReason | None) -> dict[str, Any]:
            delta = {**first, "content": text}
            first.clear()
            return {"delta": delta, "finish_reason": reason}

        return write

    def logprobs(self, listed: Sequence[Listed], wish: Wish, codec: TextCodec) -> dict[str, Any]:
        return logprobs.for_chat(listed, codec, wish.logprobs or 0, as_ids=wish.names_as_ids)


class CallForm(ChatForm):
    """The form of chat completions that call functions; see ``Form``."""

    def __init__(self, function: str | None) -> None:
        """``function``: the one that is called; None: the text is a list of calls."""
        self._function = function

    def complete(self, text: str, reason: FinishReason | None) -> dict[str, Any]:
        reader = self._reader()
        calls = [
            {**_new_call(), "function": {"name": name, "arguments": arguments}}
            for name, arguments in joined(reader.add(text))
        ]
        message = {"role": "assistant", "content": None, **({"tool_calls": calls} if calls else {})}
        return {"message": message, "finish_reason": _reason(reader, reason)}

    def writer(self) -> Write:
        reader = self._reader()
        first = {"role": "assistant", "content": None}

        def write(text: str, reason: FinishReason | None) -> dict[str, Any]:
            delta: dict[str, Any] = dict(first)
            first.clear()
            calls = [
                {"index": part.call, "function": {"arguments": part.arguments}}
                if part.name is None
                else {
                    "index": part.call,
                    **_new_call(),
                    "function": {"name": part.name, "arguments": part.arguments},
                }
                for part in reader.add(text)
            ]
            if calls:
                delta["tool_calls"] = calls
            return {"delta": delta, "finish_reason": _reason(reader, reason)}

        return write

    def _reader(self) -> Reader:
        return ListReader() if self._function is None else ArgumentsReader(self._function)


def _new_call() -> dict[str, str]:
    return {"id": f"call_{uuid4().hex}", "type": "function"}


def _reason(reader: Reader, reason: FinishReason | None) -> str | None:
    """Return OpenAI's finish reason: "tool_calls" for a complete list, and "stop" for one given function."""
    return "tool_calls" if reason == "stop" and reader.listed else reason


def usage(prompt_tokens: int, output_tokens: int) -> dict[str, int]:
    """Return the numbers of tokens, in OpenAI's format."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": prompt_tokens + output_tokens,
    }
