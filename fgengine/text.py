"""Between text and tokens: encoding, chat templates, incremental detokenizing, stop strings.

No model is loaded and torch is not imported: the server process stays light.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

CONTEXT_TOKENS = 8


class TextError(ValueError):
    """A tokenizer that cannot be used, or a chat its template refuses; the message is one sentence."""


def open_tokenizer(folder: Path) -> Tokenizer:
    """By the ``tokenizer.json`` in a model's folder. Raises TextError where none can be read."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TextError(f"there is no tokenizer.json in {folder}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise TextError(f"{path} cannot be read: {error}") from error


class TextCodec:
    """One model's tokenizer and chat template."""

    def __init__(
        self, tokenizer: Tokenizer, chat_template: ChatTemplate | None = None, chat_problem: str = ""
    ) -> None:
        """``chat_problem``: why chats cannot be encoded although the model has a template."""
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self.chat_problem = chat_problem
        self._token_bytes = token_bytes(tokenizer)

    @classmethod
    def load(cls, folder: Path) -> TextCodec:
        """From ``tokenizer.json`` and, for chat, ``tokenizer_config.json`` and ``chat_template.jinja``.

        A chat template that cannot be used costs chat alone: ``chat_problem`` says why.

        Raises:
            TextError: there is no ``tokenizer.json``, or it cannot be read.
        """
        tokenizer = open_tokenizer(folder)
        try:
            return cls(tokenizer, ChatTemplate.load(folder))
        except TextError as error:
            return cls(tokenizer, chat_problem=str(error))

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids; with the model's own beginning-of-sequence tokens unless told otherwise."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special_tokens).ids
        return ids

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The chat as the model was trained to see it, up to where the assistant's answer begins.

        Raises:
            TextError: the model has no chat template, or the template refuses these messages.
        """
        if self._chat_template is None:
            reason = self.chat_problem or "this model has no chat template"
            raise TextError(f"{reason}; use /v1/completions")
        return self.encode(self._chat_template.render(messages), special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of all tokens, special ones left out."""
        text = self.detokenizer()
        return "".join([*(text.add(token) for token in ids), text.finish()])

    def token_text(self, token: int) -> str:
        """One token by itself, for log-probability lists; parts of characters show as U+FFFD."""
        return self._token_bytes[token].decode(errors="replace") if token < len(self._token_bytes) else ""

    def detokenizer(self, prompt: Sequence[int] = ()) -> IncrementalDetokenizer:
        """``prompt``: the tokens before those that it will be given."""
        return IncrementalDetokenizer(self._tokenizer, prompt)


class IncrementalDetokenizer:
    """Turns tokens into text one at a time, emitting only whole characters.

    ``prompt``: the tokens before, so that the text goes on where they end: the leading space of the first
    word stays.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(list(prompt[-CONTEXT_TOKENS:]), skip_special_tokens=True)
        self._pending: list[int] = []
        """Tokens whose text has not come out yet."""

    def add(self, token: int) -> str:
        """The text this token completes, perhaps none. Ids beyond the tokenizer's (padding) have none."""
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception:  # the library gives up on some invalid bytes; a new stream goes on
            self._stream = DecodeStream(skip_special_tokens=True)
            text = self._stream.step(self._tokenizer, token)
        if text is None:
            self._pending.append(token)
            return ""
        self._pending.clear()
        return str(text)

    def finish(self) -> str:
        """What is left: U+FFFD for an unfinished character."""
        pending, self._pending = self._pending, []
        return str(self._tokenizer.decode(pending, skip_special_tokens=True)) if pending else ""


class StopStrings:
    """Watches text for the first stop string and holds back what may be the beginning of one.

    The string that is complete first wins (the longer one where two are), so the outcome does not
    depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """The text that is safe to show; once ``stopped``, all there is before the stop string."""
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back for nothing."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of ``text`` that is a beginning of ``stop``."""
        longest = min(len(stop) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class ChatTemplate:
    """A model's chat template. transformers renders it in Jinja's sandbox: it comes with the weights, from
    strangers."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        from transformers.utils.chat_template_utils import render_jinja_template

        self._source = source
        self._special_tokens: dict[str, Any] = dict(special_tokens)
        self._render: Callable[..., Any] = render_jinja_template

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate | None:
        """Raises TextError for a template or configuration that cannot be read; None: there is none."""
        path = folder / "tokenizer_config.json"
        try:
            config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
            file = folder / "chat_template.jinja"
            source = file.read_text("utf-8") if file.is_file() else config.get("chat_template")
            if isinstance(source, list):  # several templates by name, an older layout
                source = next((t["template"] for t in source if t.get("name") == "default"), None)
            names = ("bos_token", "eos_token", "unk_token", "pad_token")
            tokens = {name: _content(config[name]) for name in names if config.get(name)}
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise TextError(f"the chat template in {folder} cannot be read: {error}") from error
        return cls(source, tokens) if source else None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Raises TextError for a template that cannot be read, and with the reason of one that refuses."""
        from jinja2 import TemplateSyntaxError

        try:
            rendered, _ = self._render(
                [list(map(dict, messages))],
                chat_template=self._source,
                add_generation_prompt=True,
                **self._special_tokens,
            )
        except TemplateSyntaxError as error:
            reason = f"the model's chat template cannot be read: {error}"
            raise TextError(f"{reason}; use /v1/completions") from error
        except Exception as error:  # whatever the template does wrong
            raise TextError(f"the model's chat template refuses these messages: {error}") from error
        return str(rendered[0])


def _content(token: str | Mapping[str, str]) -> str:
    return token if isinstance(token, str) else token["content"]


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes each token id stands for; none for special tokens and for ids without a token.

    Follows the two decoders our model families come with: GPT-2's byte alphabet (OPT, Llama 3, Qwen,
    SmolLM2) and SentencePiece's word marks with byte fallback (Llama 2, TinyLlama).

    Of a tokenizer that decodes in another way, each token's text by itself.
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
    table = [b""] * (max(vocab.values(), default=-1) + 1)
    for text, token in vocab.items():
        if token not in special:
            table[token] = to_bytes(text) if to_bytes else tokenizer.decode([token]).encode()
    return table


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: themselves where printable, else from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _byte_level(text: str) -> bytes:
    try:
        return bytes([_BYTE_OF[char] for char in text])
    except KeyError:  # an added token, written as it is
        return text.encode()


def _sentencepiece(text: str) -> bytes:
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace("\u2581", " ").encode()
