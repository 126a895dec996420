"""The lists of tokens with their log probabilities, in the forms of completions and of chat completions."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from fgengine.server.generation import Piece
from fgengine.server.messages import PromptToken
from fgengine.text import TextCodec

LOWEST = -9999.0
"""Stands for a log probability of minus infinity, which JSON does not have."""


class Listed(NamedTuple):
    """A token in a list."""

    token: int
    logprob: float | None
    """None: nothing comes before the token, so it has no probability."""
    top: Sequence[tuple[int, float]]
    """The most probable tokens at its place, the most probable one first."""
    start: int
    """Characters of the text before it."""


class ShownTokens:
    """The tokens of an answer whose text is shown.

    A text that may become a stop string is held back, and so are its tokens. Those of the stop string, and
    those after it, are in no list. A token that ends the answer is, because its probability counts.
    """

    def __init__(self) -> None:
        self._held: deque[Listed] = deque()
        self._shown = 0
        """Characters of text that are shown."""

    def add(self, piece: Piece) -> list[Listed]:
        """Add a token; return the tokens whose text is shown now and was not before."""
        new = piece.new
        self._held.append(Listed(new.token, new.logprob, new.top or (), piece.start))
        self._shown += len(piece.text)
        by_string = piece.finish_reason == "stop" and new.finish_reason != "stop"
        ends = piece.finish_reason is not None and not by_string
        shown: list[Listed] = []
        while self._held and (ends or self._held[0].start < self._shown):
            shown.append(self._held.popleft())
        return shown


def listed_prompt(
    ids: Sequence[int], tokens: Sequence[PromptToken], codec: TextCodec, shown: str
) -> list[Listed]:
    """Return the list of a prompt's tokens. ``shown``: the prompt's text, as the answer shows it.

    A text that was posted may name special tokens, and the answer shows it as it was posted.
    """
    text, length, listed = codec.detokenizer(), 0, []
    for id, at in zip(ids, tokens, strict=True):
        listed.append(Listed(id, at.logprob, at.top, length))
        length += len(text.add(id))
        special = codec.special_text(id)
        if special and shown.startswith(special, length):
            length += len(special)
    return listed


def for_completion(
    tokens: Sequence[Listed], codec: TextCodec, alternatives: int, *, as_ids: bool = False
) -> dict[str, Any]:
    """Return the log probabilities of a completion's choice.

    Args:
        alternatives: How many of the most probable tokens are listed at each place. The chosen one is listed
            too. 0: ``top_logprobs`` is null.
        as_ids: Whether a token is written as ``token_id:5`` in place of its text.
    """

    def table(one: Listed) -> dict[str, float] | None:
        if one.logprob is None:
            return None
        found: dict[str, float] = {}
        for token, logprob in (*one.top[:alternatives], (one.token, one.logprob)):
            found.setdefault(_name(token, codec, as_ids), _finite(logprob))  # tokens may share a text
        return found

    return {
        "tokens": [_name(one.token, codec, as_ids) for one in tokens],
        "token_logprobs": [None if one.logprob is None else _finite(one.logprob) for one in tokens],
        "top_logprobs": [table(one) for one in tokens] if alternatives else None,
        "text_offset": [one.start for one in tokens],
    }


def for_chat(
    tokens: Sequence[Listed], codec: TextCodec, alternatives: int, *, as_ids: bool = False
) -> dict[str, Any]:
    """Return the log probabilities of a chat completion's choice; see ``for_completion``."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        name, raw = _name(token, codec, as_ids), codec.token_bytes(token)
        return {"token": name, "logprob": _finite(logprob), "bytes": list(raw)}

    content = [
        {
            **entry(one.token, one.logprob or 0.0),
            "top_logprobs": [entry(*other) for other in one.top[:alternatives]],
        }
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def _name(token: int, codec: TextCodec, as_id: bool) -> str:
    return f"token_id:{token}" if as_id else codec.token_text(token)


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
