"""Reads recorded traces: arrival times and lengths of requests, in four formats.

========= ======================================================== =========================
azure     CSV ``TIMESTAMP,ContextTokens,GeneratedTokens``          dates with times
burstgpt  CSV ``Timestamp,Model,Request tokens,Response tokens..`` seconds
mooncake  JSONL ``{"timestamp", "input_length", "output_length"}`` milliseconds
plain     CSV ``timestamp,prompt_tokens,output_tokens``            seconds
========= ======================================================== =========================

The last column is the unit of the time. The columns of a CSV file may have any order, and other columns are
ignored. Files may be compressed with gzip.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from fgbench.workload.datasets import Lengths
from fgbench.workload.lengths import MAX_LENGTH
from fgbench.workload.records import ReadReport, csv_rows, json_records, looks_like_json

MAX_REQUESTS = 1_000_000
"""Maximum number of requests that are read from a trace."""
DATE_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):?(\d\d))?"
)

Entry = tuple[float, int, int]
"""Seconds since any fixed time, prompt tokens, output tokens."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format of traces."""

    name: str
    columns: tuple[str, str, str]
    """Names of the columns of time, prompt tokens and output tokens; for CSV in lower case."""
    seconds: Callable[[Any], float]
    """Converts a time in the file to seconds. Raises ValueError if it is not a time."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests of a trace, in order of time."""

    name: str
    format: str
    """Name of the file's format."""
    times: tuple[float, ...] = field(repr=False)
    """Arrival times in seconds since the first request."""
    pairs: tuple[tuple[int, int], ...] = field(repr=False)
    """(prompt tokens, output tokens) of each request."""
    tally: ReadReport
    tokenless: int = 0
    """Number of requests left out because they have no prompt or output tokens: they failed."""

    @property
    def dataset(self) -> Lengths:
        """The lengths of the requests, in order."""
        return Lengths(self.name, self.pairs, in_order=True)

    @property
    def notes(self) -> list[str]:
        """Sentences about left-out requests."""
        sentences = [self.tally.loss] if self.tally.loss else []
        if self.tokenless:
            sentences.append(
                f"{self.tally.path.name}: {self.tokenless:,} requests without prompt or output tokens "
                "(they failed when recorded) are left out"
            )
        if len(self.times) == MAX_REQUESTS:
            sentences.append(f"{self.tally.path.name}: only the first {MAX_REQUESTS:,} requests are read")
        return sentences


def read_trace(path: Path, limit: int | None = None) -> Trace:
    """Read a trace from a file; with ``limit``, only its first ``limit`` requests.

    Raises:
        ValueError: the file has no known format, or no complete request.
        OSError: the file cannot be read.
    """
    if limit is not None and not 1 <= limit <= MAX_REQUESTS:
        raise ValueError(f"--limit must be between 1 and {MAX_REQUESTS}, not {limit}")
    tally = ReadReport(path)
    trace_format, rows = _open(path, tally)
    entries: list[Entry] = []
    tokenless = 0
    for row in rows:
        try:
            entry = _entry(row, trace_format)
        except (ValueError, TypeError, LookupError, OverflowError):
            tally.broken += 1
            continue
        tally.complete += 1
        if min(entry[1:]) < 1:
            tokenless += 1
            continue
        entries.append(entry)
        if len(entries) == (limit or MAX_REQUESTS):
            break
    if not entries:
        raise ValueError(f"{path} has no complete request with prompt and output tokens: give another trace")
    entries.sort(key=lambda entry: entry[0])
    start = entries[0][0]
    return Trace(
        name=path.name.partition(".")[0],
        format=trace_format.name,
        times=tuple(round(at - start, 6) for at, _, _ in entries),
        pairs=tuple((prompt, output) for _, prompt, output in entries),
        tally=tally,
        tokenless=tokenless,
    )


def csv_format(header: Sequence[str]) -> Format | None:
    """Return the trace format whose columns the header of a CSV file has; None if there is none."""
    names = {name.strip().lower() for name in header}
    return next((each for each in CSV_FORMATS if names.issuperset(each.columns)), None)


def is_mooncake(record: Any) -> bool:
    """Whether the record has the keys of Mooncake's format."""
    return isinstance(record, dict) and record.keys() >= set(MOONCAKE.columns)


def _open(path: Path, tally: ReadReport) -> tuple[Format, Iterator[Sequence[Any]]]:
    """Return the format, and the unconverted (time, prompt tokens, output tokens) of each record."""
    if looks_like_json(path):
        return MOONCAKE, _json_entries(json_records(tally))
    rows = csv_rows(tally)
    header = [name.strip().lower() for name in next(rows, [])]
    found = csv_format(header)
    if found is None:
        known = "; ".join(f"{each.name}: {', '.join(each.columns)}" for each in (*CSV_FORMATS, MOONCAKE))
        raise ValueError(
            f"{path} is not a trace (its columns: {', '.join(header) or 'none'}): give a file with the "
            f"columns of a known format ({known})"
        )
    return found, _csv_entries(rows, [header.index(name) for name in found.columns])


def _csv_entries(rows: Iterator[list[str]], at: Sequence[int]) -> Iterator[Sequence[Any]]:
    for row in rows:
        yield [row[i].strip() for i in at] if len(row) > max(at) else ()


def _json_entries(records: Iterator[Any]) -> Iterator[Sequence[Any]]:
    for record in records:
        yield [record[name] for name in MOONCAKE.columns] if is_mooncake(record) else ()


def _entry(row: Sequence[Any], trace_format: Format) -> Entry:
    """Convert a row. Raises ValueError, TypeError, LookupError or OverflowError if it is malformed."""
    time, prompt, output = row
    seconds = trace_format.seconds(time)
    if not math.isfinite(seconds):
        raise ValueError(f"{time!r} is not a time")
    return seconds, _tokens(prompt), _tokens(output)


def _tokens(value: Any) -> int:
    """Convert a number of tokens; 0 or an empty field, as for a failed request, is 0."""
    count = float(value or 0)
    if isinstance(value, bool) or not (0 <= count <= MAX_LENGTH and count.is_integer()):
        raise ValueError(f"{value!r} is not a number of tokens")
    return int(count)


def _date_time(text: str) -> float:
    """Convert a date with time to seconds since 1970. A time without a zone is assumed to be UTC."""
    match = DATE_TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a date with a time")
    date, hours, minutes, seconds, fraction, sign, zone_hours, zone_minutes = match.groups()
    since = _midnight(date) + int(hours) * 3600 + int(minutes) * 60 + int(seconds)
    if sign:
        offset = int(zone_hours) * 3600 + int(zone_minutes) * 60
        since += offset if sign == "-" else -offset
    return since + (float(f"0.{fraction}") if fraction else 0.0)


@cache
def _midnight(date: str) -> int:
    return int(datetime.fromisoformat(date).replace(tzinfo=timezone.utc).timestamp())


def _milliseconds(value: Any) -> float:
    if isinstance(value, (bool, str)):
        raise ValueError(f"{value!r} is not a number of milliseconds")
    return float(value) / 1000


CSV_FORMATS = (
    Format("azure", ("timestamp", "contexttokens", "generatedtokens"), _date_time),
    Format("burstgpt", ("timestamp", "request tokens", "response tokens"), float),
    Format("plain", ("timestamp", "prompt_tokens", "output_tokens"), float),
)
MOONCAKE = Format("mooncake", ("timestamp", "input_length", "output_length"), _milliseconds)
