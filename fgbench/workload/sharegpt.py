"""Reads (prompt, completion) pairs out of ShareGPT files, record by record, and says which lengths count.

Two forms, told apart by what a record holds: ShareGPT's own
``{"id", "conversations": [{"from": "human" | "gpt", "value"}, ...]}`` and the plain
``{"id", "prompt", "completion"}``. As a JSON list or one record a line; gzip or not.
"""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import Any

MAX_PROMPT_TOKENS = 1024
MAX_TOTAL_TOKENS = 2048
MIN_TOKENS = 4
MAX_RECORD_CHARS = 32 * 1024**2
"""Longest record accepted; the real data's longest is 0.4 Mi characters."""

_PIECE_BYTES = 1024**2
_BETWEEN_RECORDS = " \t\r\n,"
_CUT_OFF_CHARS = 8
"""JSON cut inside a literal, a number or an escape fails at most this far before the end."""


@dataclass(frozen=True, slots=True)
class TextPair:
    """What was asked and what was answered."""

    id: str
    prompt: str
    completion: str


def length_ok(prompt_tokens: int, output_tokens: int) -> bool:
    """The filter of the published experiments: neither side shorter than 4 tokens, prompts up to 1024,
    prompt and output together up to 2048."""
    return (
        MIN_TOKENS <= prompt_tokens <= MAX_PROMPT_TOKENS
        and output_tokens >= MIN_TOKENS
        and prompt_tokens + output_tokens <= MAX_TOTAL_TOKENS
    )


class Records:
    """The pairs of a file, in its order; holds one record in memory at a time.

    The counts are complete once the iteration is. A file cut off inside its last record (as the
    packaged ShareGPT is) gives all its whole records; the rest is counted in ``broken``.

    Iterating raises:
        ValueError: the file is no list of such records, or is damaged anywhere but at its end.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, *, every_turn: bool = False) -> None:
        self.path = path
        self.every_turn = every_turn
        """Every question that is answered, not only a conversation's first."""
        self.whole = 0
        """Records read in full."""
        self.unpaired = 0
        """Of these, the ones without a human turn answered by gpt."""
        self.broken = 0
        """1 when the last record was cut off."""

    def __iter__(self) -> Iterator[TextPair]:
        self.whole = self.unpaired = self.broken = 0
        for record in self._objects():
            self.whole += 1
            pairs = text_pairs(record) if self.every_turn else [text_pair(record)]
            found = [pair for pair in pairs if pair is not None]
            self.unpaired += not found
            yield from found

    def _objects(self) -> Iterator[Any]:
        decoder = json.JSONDecoder(strict=False)
        buffer, at, passed = "", 0, 0
        for piece in _pieces(self.path):
            buffer, passed, at = buffer[at:] + piece, passed + at, 0
            if passed == 0:
                at = _skip(buffer, 0)
                if buffer[at : at + 1] == "[":
                    at += 1
            while (at := _skip(buffer, at)) < len(buffer) and buffer[at] != "]":
                try:
                    record, at = decoder.raw_decode(buffer, at)
                except json.JSONDecodeError as error:
                    if _is_damage(error, len(buffer)) or len(buffer) - at > MAX_RECORD_CHARS:
                        where = f"{error.msg} at character {passed + error.pos}"
                        raise ValueError(f"{self.path} is not a list of JSON records: {where}") from None
                    break
                yield record
        if buffer[at : at + 1] not in ("", "]"):
            self.broken = 1


def read_records(path: str | Path, *, every_turn: bool = False) -> Records:
    """The (prompt, completion) pairs of a ShareGPT file: iterate, then read the counts."""
    return Records(Path(path), every_turn=every_turn)


def text_pair(record: Any) -> TextPair | None:
    """The first human turn and the gpt turn right after it; None where there is no such pair.

    Raises ValueError for a record of neither form.
    """
    turns, pairs = _turns(record), text_pairs(record)
    first = next((turn for turn, _ in turns if turn["from"] == "human"), None)
    return pairs[0] if pairs and (first is None or first["value"] == pairs[0].prompt) else None


def text_pairs(record: Any) -> list[TextPair]:
    """Every human turn with a gpt turn right after it.

    Raises ValueError for a record of neither form.
    """
    turns = _turns(record)
    name = str(record.get("id", ""))
    if "conversations" not in record:
        return [TextPair(name, str(record["prompt"]), str(record["completion"]))]
    return [
        TextPair(name, str(turn["value"]), str(answer["value"]))
        for turn, answer in turns
        if turn["from"] == "human" and answer["from"] == "gpt"
    ]


def _turns(record: Any) -> list[tuple[Any, Any]]:
    """Neighbouring turns of a conversation, checked; none of a plain record."""
    if not isinstance(record, dict) or not (
        "conversations" in record or {"prompt", "completion"} <= set(record)
    ):
        raise ValueError(
            'a record must hold "conversations" (ShareGPT) or "prompt" and "completion"; '
            f"this one is {str(record)[:80]!r}"
        )
    if "conversations" not in record:
        return []
    try:
        turns = list(record["conversations"])
        for turn in turns:
            turn["from"], turn["value"]
    except (TypeError, KeyError):
        name = str(record.get("id", ""))
        raise ValueError(f'record {name!r}: every turn must hold "from" and "value"') from None
    return list(pairwise(turns))


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BETWEEN_RECORDS:
        at += 1
    return at


def _is_damage(error: json.JSONDecodeError, end: int) -> bool:
    """False where the record may just go on behind the end of what has been read."""
    return not error.msg.startswith("Unterminated string") and end - error.pos > _CUT_OFF_CHARS


def _pieces(path: Path) -> Iterator[str]:
    """The file's text; ends early, without an error, where a gzip stream or a character is cut off."""
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    try:
        with _open(path) as file:
            while data := _read(file):
                yield decode(data)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if zipped else path.open("rb")


def _read(file: gzip.GzipFile | BufferedReader) -> bytes:
    try:
        return file.read1(_PIECE_BYTES)
    except EOFError:
        return b""
