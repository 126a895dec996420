"""Reads a model's tokenizer.json and its chat template, and checks them before other libraries see them.

The tokenizers library ends the whole process where a file asks it for too much memory, such as a token id of
4,294,967,290, and no exception can prevent that. So ids and sizes are checked here first.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec
from tokenizers import Tokenizer

from fgengine.model.catalog import vocabulary_of
from fgengine.model.files import ModelError, one_line, parse_json, read_file, read_json, wrong
from fgengine.model.hf_config import MAX_VOCAB_SIZE

MAX_TOKENIZER_BYTES = 128 * 1024**2
MAX_SETTINGS_BYTES = 16 * 1024**2
MAX_TEMPLATE_BYTES = 1024**2
MAX_GROWTH = 2**24
"""Upper bound of what the steps of a normalizer or decoder may do to the length of a text, if each of them
does the most. Those of real models replace one character by another."""
_TRIAL = "A text, 1 of 2."

_Id = Annotated[int, msgspec.Meta(ge=0, lt=MAX_VOCAB_SIZE)]


class _AddedToken(msgspec.Struct):
    id: _Id
    content: str


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[msgspec.Raw]
    """Ids by token; for Unigram, pairs of token and score in the order of their ids."""


class _Pattern(msgspec.Struct):
    text: str | None = msgspec.field(default=None, name="String")
    """The text to be replaced; None: a regular expression."""


class _Step(msgspec.Struct):
    """A step that changes texts, or a list of them: of a normalizer, before encoding, or of a decoder."""

    pattern: _Pattern | None = None
    content: str | None = None
    """What replaces the pattern."""
    prepend: str | None = None
    precompiled_charsmap: str | None = None
    normalizers: list[_Step] = []
    decoders: list[_Step] = []

    @property
    def growth(self) -> float:
        """How much longer the step can make each character of a text."""
        if self.pattern is None or self.content is None:
            return 1.0 + len(self.prepend or "")
        if self.pattern.text:
            return max(1.0, len(self.content) / len(self.pattern.text))
        return 1.0 + len(self.content)  # an empty pattern matches between any two characters


class _TokenizerJson(msgspec.Struct):
    model: _Model
    added_tokens: list[_AddedToken] | None = None
    normalizer: _Step | None = None
    decoder: _Step | None = None


class _SpecialToken(msgspec.Struct):
    content: str


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _TokenizerConfig(msgspec.Struct):
    chat_template: str | list[_NamedTemplate] | None = None
    bos_token: str | _SpecialToken | None = None
    eos_token: str | _SpecialToken | None = None
    unk_token: str | _SpecialToken | None = None
    pad_token: str | _SpecialToken | None = None


def open_tokenizer(folder: Path, model: str | None = None) -> Tokenizer:
    """Open the ``tokenizer.json`` of a folder. It never shortens or pads a text, whatever the file says.

    Args:
        model: the model that will get the token ids, as a name of the catalog or a path; None: any.

    Raises:
        ModelError: the file is missing, damaged or too large; the tokenizer cannot encode a text; or it gives
            ids that are outside the model's vocabulary. Tokens that were added to a vocabulary later
            (``added_tokens``, such as a padding token) may be outside: only a text that spells one of them
            gets its id, and only that text is refused.
    """
    path = folder / "tokenizer.json"
    content = read_file(path, MAX_TOKENIZER_BYTES)
    if content is None:
        raise ModelError(f"there is no tokenizer.json in {folder}")
    _check(parse_json(content, _TokenizerJson, path), path)
    with tokenizer_problems(path):
        tokenizer = Tokenizer.from_buffer(content)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        always: list[int] = tokenizer.encode("").ids
        tried: list[int] = tokenizer.encode(_TRIAL).ids
        tokenizer.decode(tried)
    limit, source = MAX_VOCAB_SIZE, "the largest possible vocabulary"
    if model is not None:
        limit, source = vocabulary_of(model)
    _check_vocabulary(tokenizer, always, limit, source, path)
    return tokenizer


@contextmanager
def tokenizer_problems(path: Path) -> Iterator[None]:
    """Turn what the tokenizers library raises for the file ``path`` into a ModelError.

    It raises plain exceptions. A panic in its Rust code is a BaseException, so that nothing else catches it.
    """
    try:
        yield
    except ModelError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ModelError(f"{path} cannot be used: {one_line(error)}") from None
        raise


def read_chat_template(folder: Path) -> tuple[str | None, dict[str, str]]:
    """Return the source of a folder's chat template, and the special tokens that it may name.

    ``chat_template.jinja`` counts before the ``chat_template`` of ``tokenizer_config.json``. The source is
    None if there is neither.

    Raises ModelError if one of the two files cannot be used.
    """
    path = folder / "tokenizer_config.json"
    settings = read_json(path, _TokenizerConfig, MAX_SETTINGS_BYTES) or _TokenizerConfig()
    source = settings.chat_template
    if isinstance(source, list):  # an older format with several named templates
        source = next((one.template for one in source if one.name == "default"), None)
    file = folder / "chat_template.jinja"
    if (content := read_file(file, MAX_TEMPLATE_BYTES)) is not None:
        try:
            source = content.decode()
        except UnicodeDecodeError as error:
            raise ModelError(f"{file} is not UTF-8: {error}") from None
    elif source is not None and len(source) > MAX_TEMPLATE_BYTES:
        raise ModelError(f"{path}: chat_template is longer than {MAX_TEMPLATE_BYTES} characters")
    tokens = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        if token := getattr(settings, name):
            tokens[name] = token.content if isinstance(token, _SpecialToken) else token
    return source, tokens


def _check(found: _TokenizerJson, path: Path) -> None:
    """Raise ModelError for what would make the library take more memory than there is."""
    vocab = found.model.vocab
    if isinstance(vocab, dict):
        for token, id in vocab.items():
            if not 0 <= id < MAX_VOCAB_SIZE:
                raise wrong(path, f"model.vocab.{token:.60}", id, f"be from 0 to {MAX_VOCAB_SIZE - 1}")
    elif len(vocab) > MAX_VOCAB_SIZE:
        raise ModelError(f"{path}: model.vocab has {len(vocab)} tokens, more than {MAX_VOCAB_SIZE}")
    for name, whole in (("normalizer", found.normalizer), ("decoder", found.decoder)):
        steps = list(_steps(whole)) if whole else []
        if any(step.precompiled_charsmap and not _is_charsmap(step.precompiled_charsmap) for step in steps):
            raise ModelError(f"{path}: {name}.precompiled_charsmap is damaged: download the file again")
        if math.prod(step.growth for step in steps) > MAX_GROWTH:
            raise ModelError(f"{path}: {name} makes texts more than {MAX_GROWTH} times as long")


def _steps(step: _Step) -> Iterator[_Step]:
    yield step
    for one in (*step.normalizers, *step.decoders):
        yield from _steps(one)


def _is_charsmap(text: str) -> bool:
    """Whether a SentencePiece table of characters is as long as the size at its start says."""
    try:
        table = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    size = int.from_bytes(table[:4], "little")
    return len(table) >= 4 and size % 4 == 0 and 0 < size <= len(table) - 4


def _check_vocabulary(tokenizer: Tokenizer, always: list[int], limit: int, source: str, path: Path) -> None:
    """Raise ModelError if texts get ids from ``limit`` on. ``always``: the ids that every prompt gets."""
    added = set(tokenizer.get_added_tokens_decoder())
    vocab: dict[str, Any] = tokenizer.get_vocab(with_added_tokens=False)
    largest = max((id for id in vocab.values() if id not in added), default=-1)
    if largest >= limit:
        raise ModelError(
            f"{path} has token ids up to {largest}, but {source} is {limit}: the tokenizer and the model do "
            "not belong together"
        )
    if max(always, default=-1) >= limit:
        raise ModelError(
            f"{path} adds the token id {max(always)} to every prompt, but {source} is {limit}: the tokenizer "
            "and the model do not belong together"
        )
