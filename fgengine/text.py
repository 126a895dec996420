"""Converts between text and tokens: encoding, chat templates, incremental detokenizing, stop strings.

It loads no model and does not import torch, so that the server's process remains small.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Tokenizer
from tokenizers.decoders import DecodeStream

from fgengine.model.files import ModelError
from fgengine.model.tokenizer_files import open_tokenizer, read_chat_template, tokenizer_problems

MAX_TOKEN_TEXTS_BYTES = 256 * 1024**2
"""Limit for the texts of all tokens: a decoder can make a long text of a short token."""
CONTEXT_TOKENS = 8
"""Tokens of the prompt that a detokenizer starts with, so that it continues the text correctly."""
TOKEN_IDS = range(2**32)
"""The ids that the library takes. A client may send any; the engine refuses those that the model has not."""

MAX_PENDING = 32
"""Tokens without text after which a detokenizer starts again. A character has at most 4 bytes, so these are
special tokens, or bytes that are no character."""


class TextError(ValueError):
    """A model has no usable chat template, or its template refuses a chat. The message is one sentence."""


class TextCodec:
    """The tokenizer and chat template of a model.

    codec = TextCodec.load(folder)
    codec.decode(codec.encode("some text"))  # "some text"
    """

    def __init__(
        self, tokenizer: Tokenizer, chat_template: ChatTemplate | None = None, chat_problem: str = ""
    ) -> None:
        """``chat_problem``: the reason why chats cannot be encoded, if the model's template is unusable."""
        self.tokenizer = tokenizer
        self._chat_template = chat_template
        self.chat_problem = chat_problem
        self._token_bytes = token_bytes(tokenizer)
        vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self.longest_token = max(map(len, vocab), default=0)
        """Characters of the longest token. So a text has at least its length divided by this many tokens."""

    @classmethod
    def load(cls, folder: Path, model: str | None = None) -> TextCodec:
        """Load ``tokenizer.json`` and, for chats, ``tokenizer_config.json`` and ``chat_template.jinja``.

        If the chat template is unusable, only chats fail: ``chat_problem`` has the reason.

        Args:
            model: the model that will get the token ids, as a name of the catalog or a path; None: any.

        Raises:
            ModelError: there is no ``tokenizer.json``, it is damaged, or it is that of another model.
        """
        codec = cls.without_chats(folder, model)
        try:
            codec._chat_template = ChatTemplate.load(folder)
        except (ModelError, TextError) as error:
            codec.chat_problem = f"the chat template cannot be read: {error}"
        return codec

    @classmethod
    def without_chats(cls, folder: Path, model: str | None = None) -> TextCodec:
        """Load only ``tokenizer.json``: chats are refused. Arguments and errors as for ``load``."""
        tokenizer = open_tokenizer(folder, model)
        with tokenizer_problems(folder / "tokenizer.json"):
            return cls(tokenizer)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text, by default with the model's beginning-of-sequence token."""
        ids: list[int] = self.encoding(text, special_tokens=special_tokens).ids
        return ids

    def encoding(self, text: str, *, special_tokens: bool = True) -> Encoding:
        """Return a text's tokens without making a list of them; ``len`` is their number.

        Raises TextError if the tokenizer fails at this text.
        """
        try:
            return self.tokenizer.encode(text, add_special_tokens=special_tokens)
        except BaseException as error:  # the library's panics are no Exception
            if isinstance(error, Exception) or type(error).__name__ == "PanicException":
                raise TextError(f"the model's tokenizer fails at this text: {error}") from None
            raise

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """Return the token ids of a chat in the model's format, up to the start of the assistant's answer.

        Args:
            messages: The chat, in OpenAI's form. Arguments of calls are objects, as templates take them.
            tools: The functions that the template shows to the model, in OpenAI's form.

        Raises:
            TextError: the model has no usable chat template, or the template refuses these messages.
        """
        return self.encode(self.render_chat(messages, tools), special_tokens=False)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """Return the text of a chat in the model's format. The template is untrusted code: it may never end.

        Args:
            messages, tools: As for ``encode_chat``.

        Raises:
            TextError: as for ``encode_chat``.
        """
        if self._chat_template is None:
            reason = self.chat_problem or "this model has no chat template"
            raise TextError(f"{reason}; use /v1/completions")
        return self._chat_template.render(messages, tools)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of all tokens, without special tokens."""
        known = [token for token in ids if 0 <= token < len(self._token_bytes)]
        return str(self.tokenizer.decode(known, skip_special_tokens=True))

    def decode_all(self, ids: Sequence[int]) -> str:
        """Return the text of all tokens, with special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token, for lists of log probabilities; of a special token, its name."""
        known = self._token_bytes[token] if token < len(self._token_bytes) else b""
        return known or (self.tokenizer.id_to_token(token) or "").encode()

    def token_text(self, token: int) -> str:
        """Return the text of one token, as ``token_bytes`` does. Incomplete characters are U+FFFD."""
        return self.token_bytes(token).decode(errors="replace")

    def special_text(self, token: int) -> str:
        """Return the name of a special token, as a text may contain it; empty for all other tokens."""
        if not 0 <= token < len(self._token_bytes) or self._token_bytes[token]:
            return ""
        return self.tokenizer.id_to_token(token) or ""

    def detokenizer(self, prompt: Sequence[int] = ()) -> IncrementalDetokenizer:
        """Return a detokenizer for the tokens that follow ``prompt``."""
        return IncrementalDetokenizer(self.tokenizer, prompt)


class IncrementalDetokenizer:
    """Converts tokens to text, one at a time. Returns complete characters only.

    ``prompt``: the tokens before the first one. The text continues them, so that it preserves the leading
    space of the first word.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        context = [token for token in prompt[-CONTEXT_TOKENS:] if token in TOKEN_IDS]
        self._stream = DecodeStream(context, skip_special_tokens=True)
        self._pending: list[int] = []
        """Tokens whose text has not been returned yet."""

    def add(self, token: int) -> str:
        """Return the text that this token completes, often none. Unknown ids (padding) have no text."""
        if token not in TOKEN_IDS:
            return ""
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception:  # the library fails at some invalid bytes; continue with a new stream
            self._stream = DecodeStream(skip_special_tokens=True)
            text = self._stream.step(self._tokenizer, token)
        if text is None:
            self._pending.append(token)
            if len(self._pending) < MAX_PENDING:
                return ""
            # The library decodes all of them again at each step, so very many would take very long.
            text = self.finish()
            self._stream = DecodeStream(skip_special_tokens=True)
            return text
        self._pending.clear()
        return str(text)

    def finish(self) -> str:
        """Return the text of the pending tokens: U+FFFD for an incomplete character."""
        pending, self._pending = self._pending, []
        return str(self._tokenizer.decode(pending, skip_special_tokens=True)) if pending else ""


class StopStrings:
    """Searches a text for the first stop string. Holds back text that may be the start of one.

    The stop string that is complete first counts; if two are complete at the same character, the longer one.
    So the result does not depend on how the text is divided into pieces.

        stops = StopStrings(["END"])
        stops.add("one EN")  # "one "
        stops.add("D two")   # "", and stops.stopped is True
    """

    def __init__(self, stops: Sequence[str], *, keep: bool = False) -> None:
        """``keep``: whether the stop string that ends the text is shown."""
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._keep = keep
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """Add text; return the text that is safe to show. Sets ``stopped`` if a stop string was found."""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            end, start = min(found)
            return text[: end if self._keep else start]
        overlap = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - overlap :]
        return text[: len(text) - overlap]

    def finish(self) -> str:
        """Return the text that was held back; it did not become a stop string."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Return the length of the longest end of ``text`` that is a start of ``stop``."""
        longest = min(len(stop) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class ChatTemplate:
    """The chat template of a model.

    transformers renders it in Jinja's sandbox, because a template comes with the weights and is not trusted.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        from transformers.utils.chat_template_utils import render_jinja_template

        self._source = source
        self._special_tokens: dict[str, Any] = dict(special_tokens)
        self._render: Callable[..., Any] = render_jinja_template

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate | None:
        """Load the template of a folder; None if there is none. Raises ModelError if a file is damaged."""
        source, special_tokens = read_chat_template(folder)
        return cls(source, special_tokens) if source else None

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Return the text of a chat. Raises TextError if the template is invalid or refuses the messages."""
        from jinja2 import TemplateSyntaxError

        try:
            rendered, _ = self._render(
                [list(map(dict, messages))],
                tools=list(tools) or None,
                chat_template=self._source,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except TemplateSyntaxError as error:
            reason = f"the model's chat template cannot be read: {error}"
            raise TextError(f"{reason}; use /v1/completions") from error
        except Exception as error:  # a template can raise any exception
            reason = str(error) or type(error).__name__
            raise TextError(f"the model's chat template refuses these messages: {reason}") from error
        return str(rendered[0])


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes of each token id; empty for special tokens and for ids without a token.

    Supports the two decoders of our model families: GPT-2's byte alphabet (OPT, Llama 3, Qwen, SmolLM2), and
    SentencePiece's word marks with byte fallback (Llama 2, TinyLlama). For any other decoder, the bytes are
    those of the token decoded alone. Raises ValueError if they are too many to be texts of tokens.
    """
    spec = json.loads(tokenizer.to_str())
    decoder = spec.get("decoder") or {}
    steps = {step["type"]: step for step in decoder.get("decoders", [decoder]) if "type" in step}
    to_bytes: Callable[[str], bytes] | None = None
    if "ByteLevel" in steps:
        to_bytes = _byte_level
    elif "ByteFallback" in steps or "Metaspace" in steps:
        to_bytes = _sentencepiece
    special: set[int] = {token["id"] for token in spec.get("added_tokens", []) if token["special"]}
    vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    table, left = [b""] * (max(vocab.values(), default=-1) + 1), MAX_TOKEN_TEXTS_BYTES
    for text, token in vocab.items():
        if token not in special:
            table[token] = to_bytes(text) if to_bytes else tokenizer.decode([token]).encode()
            left -= len(table[token])
            if left < 0:
                raise ValueError(f"the texts of its tokens have more than {MAX_TOKEN_TEXTS_BYTES} bytes")
    return table


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's characters for bytes: printable bytes map to themselves, others to U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


def _byte_level(text: str) -> bytes:
    try:
        return bytes([_BYTE_OF[char] for char in text])
    except KeyError:  # an added token, which is plain text
        return text.encode()


def _sentencepiece(text: str) -> bytes:
    if byte := _BYTE_TOKEN.fullmatch(text):
        return bytes.fromhex(byte[1])
    return text.replace("\u2581", " ").encode()
