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

    def __init__(self, path: Path) -> None:
        self.path = path
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
            pair = text_pair(record)
            if pair is None:
                self.unpaired += 1
            else:
                yield pair

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


def read_records(path: str | Path) -> Records:
    """The (prompt, completion) pairs of a ShareGPT file: iterate, then read the counts."""
    return Records(Path(path))


def text_pair(record: Any) -> TextPair | None:
    """The first human turn and the gpt turn right after it; None where there is no such pair.

    Raises ValueError for a record of neither form.
    """
    if not isinstance(record, dict) or not (
        "conversations" in record or {"prompt", "completion"} <= set(record)
    ):
        raise ValueError(
            'a record must hold "conversations" (ShareGPT) or "prompt" and "completion"; '
            f"this one is {str(record)[:80]!r}"
        )
    name = str(record.get("id", ""))
    if "conversations" not in record:
        return TextPair(name, str(record["prompt"]), str(record["completion"]))
    try:
        for turn, answer in pairwise(record["conversations"]):
            if turn["from"] == "human":
                return (
                    TextPair(name, str(turn["value"]), str(answer["value"]))
                    if answer["from"] == "gpt"
                    else None
                )
    except (TypeError, KeyError):
        raise ValueError(f'record {name!r}: every turn must hold "from" and "value"') from None
    return None


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
