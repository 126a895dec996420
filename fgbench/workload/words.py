"""Words of exactly one token each, so that a prompt of a wanted number of tokens can be sent as text.

A server that takes no token ids gets such prompts. Joined words have as many tokens as there are words,
because tokenizers of language models split a text into words before they look for tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fgengine.model.tokenizer_files import open_tokenizer

WORDS = 4_000
"""Number of words that are used at most."""
_WORD = re.compile(r" [a-z]{3,12}")
_CHECKED_TOGETHER = 500


def single_token_words(folder: Path) -> tuple[str, ...]:
    """Return words, each with a space before it, that have one token each with the tokenizer in ``folder``.

        words = single_token_words(Path("smollm2-135m"))
        "".join(words[:3])  # a text of 3 tokens

    Raises ValueError if the tokenizer has no such words, such as one whose tokens are single bytes.
    """
    tokenizer = open_tokenizer(folder)
    found: list[str] = []
    for token in range(tokenizer.get_vocab_size()):
        text = tokenizer.decode([token])
        word = text if text.startswith(" ") else f" {text}"
        if _WORD.fullmatch(word) and tokenizer.encode(word, add_special_tokens=False).ids == [token]:
            found.append(word)
            if len(found) == WORDS:
                break
    if len(found) < 2 or not _add_up(tokenizer, found):
        raise ValueError(
            f"the tokenizer in {folder} has no words of one token, so --send-text cannot make prompts of a "
            "given length: use a dataset of texts, such as --dataset sharegpt"
        )
    return tuple(found)


def _add_up(tokenizer: object, words: Sequence[str]) -> bool:
    """Whether joined words have as many tokens as there are words."""
    for start in range(0, len(words), _CHECKED_TOGETHER):
        some = words[start : start + _CHECKED_TOGETHER]
        if len(tokenizer.encode("".join(some), add_special_tokens=False).ids) != len(some):  # type: ignore[attr-defined]
            return False
    return True
