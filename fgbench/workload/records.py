"""Reads JSON and CSV files record by record. They may be compressed with gzip, and may be damaged.

Complete records are used, and other records are counted. A line that is not a record is left out. If a file
is cut off, all records before that place are used. A ``ReadReport`` says what was lost.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_RECORD_CHARS = 32 * 1024**2
"""Longest accepted record, in characters; the longest in ShareGPT has 0.4 Mi."""
_PIECE_BYTES = 1024**2
_BETWEEN_RECORDS = " \t\r\n,"
_CUT_OFF_CHARS = 8
"""If JSON is cut inside a literal, a number or an escape, the error is at most this far before the end."""
_BOM = codecs.BOM_UTF8


@dataclass(slots=True)
class ReadReport:
    """The counts of a file's records. They are final when all records have been read."""

    path: Path
    complete: int = 0
    """Number of complete records in the right format."""
    broken: int = 0
    """Number of records left out because they are damaged, cut off or have another format."""
    example: str = ""
    """What is wrong with the first broken record, if it is known."""
    damaged_at: int | None = None
    """Position (in characters) after which nothing could be read; None: all was read."""
    cut_off: bool = False
    """Whether the compressed file ends too early or is damaged."""

    @property
    def loss(self) -> str | None:
        """A sentence about what was lost; None: nothing was lost."""
        parts = []
        if self.broken:
            are = "record is" if self.broken == 1 else "records are"
            example = f" ({self.example})" if self.example else ""
            parts.append(f"{self.broken:,} {are} broken or cut off and left out{example}")
        if self.damaged_at is not None:
            parts.append(f"the part after character {self.damaged_at:,} could not be read")
        if self.cut_off:
            parts.append("the compressed file is damaged or cut off")
        return f"{self.path.name}: {self.complete:,} complete records; {', '.join(parts)}" if parts else None


def json_records(tally: ReadReport) -> Iterator[Any]:
    """Yield the values of a JSON list, or of a file with one value per line. Stores one value at a time.

    Raises:
        ValueError: the file has no complete value.
        OSError: the file cannot be read.
    """
    pieces = _pieces(tally)
    first = _beginning(pieces)
    read = _list_values if first.lstrip().startswith(b"[") else _line_values
    yield from read(_chained(first, pieces), tally)


def looks_like_json(path: Path) -> bool:
    """Whether the file begins like a JSON list or object."""
    return _beginning(_pieces(ReadReport(path))).lstrip()[:1] in (b"[", b"{")


def csv_rows(tally: ReadReport) -> Iterator[list[str]]:
    """Yield the rows of a CSV file, header first, without empty lines. Fields must not have line breaks."""
    for line in _lines(_pieces(tally), tally):
        try:
            row = next(csv.reader([line.decode("utf-8-sig").strip()]), None)
        except (UnicodeDecodeError, csv.Error):
            tally.broken += 1
            continue
        if row:
            yield row


def text_records(tally: ReadReport, numbers: Collection[str] = ()) -> Iterator[Any]:
    """Yield the records of a file of texts: JSON values, the rows of a CSV file by their header, or the lines
    of a .txt file as ``{"prompt": line}``.

    Raises as ``json_records``, and ValueError if a CSV file cannot be read at all.
    """
    if tally.path.name.removesuffix(".gz").endswith(".txt"):
        for line in _lines(_pieces(tally), tally):
            yield {"prompt": line.decode("utf-8", "replace").strip()}
    elif tally.path.name.removesuffix(".gz").endswith(".csv"):
        yield from _csv_dicts(tally, numbers)
    else:
        yield from json_records(tally)


def _csv_dicts(tally: ReadReport, numbers: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV file, whose fields may have line breaks, as texts without empty ones."""
    text = (piece.removeprefix("\ufeff") for piece in _text(_pieces(tally), tally))
    lines = (f"{line}\n" for piece in _whole_lines(text) for line in piece.removesuffix("\n").split("\n"))
    csv.field_size_limit(MAX_RECORD_CHARS)
    rows = csv.DictReader(lines, strict=True)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:  # the reader goes on with the next line
            tally.broken += 1
            tally.example = tally.example or str(error)
            continue
        if row is None:
            return
        yield {
            key: int(value) if key in numbers and value.isascii() and value.isdecimal() else value
            for key, value in row.items()
            if key is not None and value not in (None, "")
        }


def _whole_lines(pieces: Iterator[str]) -> Iterator[str]:
    """Yield the text in pieces that end with a line's end."""
    rest = ""
    for piece in pieces:
        whole, newline, rest_of_piece = piece.rpartition("\n")
        if newline:
            yield f"{rest}{whole}\n"
            rest = rest_of_piece
        else:
            rest += piece
    if rest:
        yield rest


def _list_values(pieces: Iterator[bytes], tally: ReadReport) -> Iterator[Any]:
    """Yield the values of a JSON list."""
    decoder = json.JSONDecoder(strict=False)
    buffer, at, passed, found = "", 0, 0, 0
    for text in _text(pieces, tally):
        buffer, passed, at = buffer[at:] + text, passed + at, 0
        if passed == 0:
            at = buffer.index("[") + 1
        while (at := _skip(buffer, at)) < len(buffer) and buffer[at] != "]":
            try:
                value, at = decoder.raw_decode(buffer, at)
            except (json.JSONDecodeError, RecursionError) as error:
                if _may_continue(error, len(buffer)) and len(buffer) - at <= MAX_RECORD_CHARS:
                    break
                if not found:
                    raise ValueError(f"{tally.path} is not a list of JSON records: {error}") from None
                tally.damaged_at = passed + at
                return
            found += 1
            yield value
    if tally.damaged_at is not None:
        if not found:
            raise ValueError(f"{tally.path} is not a text in UTF-8: convert it")
        tally.damaged_at = passed + at
    elif buffer[at : at + 1] not in ("", "]"):
        tally.broken += 1
        if not found:
            raise ValueError(f"{tally.path} is cut off before the end of its first record: get it again")


def _text(pieces: Iterator[bytes], tally: ReadReport) -> Iterator[str]:
    """Decode the pieces. Ends before the first byte that is not UTF-8, and notes this in ``tally``."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    try:
        for piece in pieces:
            yield decode(piece)
    except UnicodeDecodeError as error:
        tally.damaged_at = 0
        yield error.object[: error.start].decode()


def _line_values(pieces: Iterator[bytes], tally: ReadReport) -> Iterator[Any]:
    """Yield the JSON values of a file with one value per line."""
    found = False
    for line in _lines(pieces, tally):
        try:
            value = json.loads(line, strict=False)
        except (ValueError, RecursionError):
            tally.broken += 1
            continue
        found = True
        yield value
    if not found and tally.broken:
        raise ValueError(
            f"{tally.path} is neither a list of JSON records nor has one record per line: "
            "convert it into one of these forms"
        )


def _lines(pieces: Iterator[bytes], tally: ReadReport) -> Iterator[bytes]:
    """Yield the lines that are not blank.

    Only counts lines that are too long, and the last line of a stream that is cut off.
    """
    rest, too_long = b"", False
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if too_long:
                tally.broken += 1
                too_long = False
            elif line.strip():
                yield line
        if len(rest) > MAX_RECORD_CHARS:
            rest, too_long = b"", True
    if rest.strip() or too_long:
        if tally.cut_off or too_long:
            tally.broken += 1
        else:
            yield rest


def _skip(text: str, at: int) -> int:
    """Return the position of the next character that is not between records."""
    while at < len(text) and text[at] in _BETWEEN_RECORDS:
        at += 1
    return at


def _may_continue(error: Exception, end: int) -> bool:
    """Whether the record may continue after the text that has been read so far."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or end - error.pos <= _CUT_OFF_CHARS


def _beginning(pieces: Iterator[bytes]) -> bytes:
    """Return the pieces up to the first one with content, joined, without a byte order mark."""
    first = b""
    for piece in pieces:
        first += piece
        if len(first) > len(_BOM) and first.removeprefix(_BOM).strip():
            break
    return first.removeprefix(_BOM)


def _chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _pieces(tally: ReadReport) -> Iterator[bytes]:
    """Yield the file's bytes, decompressed. Ends early if the compression is cut off or damaged."""
    with tally.path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if zipped else raw
        while True:
            try:
                piece = file.read1(_PIECE_BYTES)
            except (EOFError, zlib.error, gzip.BadGzipFile):
                tally.cut_off = True
                return
            if not piece:
                return
            yield piece
