"""Recorded traces: when requests came and how long they were, in the formats in which they are published.

========= ======================================================== =========================
azure     CSV ``TIMESTAMP,ContextTokens,GeneratedTokens``          a date and time each
burstgpt  CSV ``Timestamp,Model,Request tokens,Response tokens..`` seconds
mooncake  JSONL ``{"timestamp", "input_length", "output_length"}`` milliseconds
plain     CSV ``timestamp,prompt_tokens,output_tokens``            seconds
========= ======================================================== =========================

Further columns are left aside, a CSV's may come in any order, and gzip is recognised.
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
"""Of one trace; what follows is not read."""
DATE_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):?(\d\d))?"
)

Entry = tuple[float, int, int]
"""Seconds from anywhere, prompt tokens, output tokens."""


@dataclass(frozen=True, slots=True)
class Format:
    name: str
    columns: tuple[str, str, str]
    """Of the time, the prompt's and the output's tokens; a CSV's in lower case."""
    seconds: Callable[[Any], float]
    """From the time as it is written. Raises ValueError for what is no time."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace's requests in order of time."""

    name: str
    format: str
    times: tuple[float, ...] = field(repr=False)
    """Seconds from the first request."""
    pairs: tuple[tuple[int, int], ...] = field(repr=False)
    """(prompt tokens, output tokens) of each."""
    tally: ReadReport
    tokenless: int = 0
    """Requests left out because the trace has no token of their prompt or answer: they failed."""

    @property
    def dataset(self) -> Lengths:
        """Its lengths, in its order."""
        return Lengths(self.name, self.pairs, in_order=True)

    @property
    def notes(self) -> list[str]:
        """What is not as it would be expected, in sentences."""
        said = [self.tally.loss] if self.tally.loss else []
        if self.tokenless:
            said.append(
                f"{self.tally.path.name}: {self.tokenless:,} requests without prompt or output tokens "
                "(they failed when recorded) are left out"
            )
        if len(self.times) == MAX_REQUESTS:
            said.append(f"{self.tally.path.name}: only the first {MAX_REQUESTS:,} requests are read")
        return said


def read_trace(path: Path, limit: int | None = None) -> Trace:
    """The trace in a file, its first ``limit`` requests if given.

    Raises:
        ValueError: the file is in no known format, or has no whole request.
        OSError: it cannot be read.
    """
    if limit is not None and not 1 <= limit <= MAX_REQUESTS:
        raise ValueError(f"--limit must be between 1 and {MAX_REQUESTS}, not {limit}")
    tally = ReadReport(path)
    form, rows = _open(path, tally)
    entries: list[Entry] = []
    tokenless = 0
    for row in rows:
        try:
            entry = _entry(row, form)
        except (ValueError, TypeError, LookupError, OverflowError):
            tally.broken += 1
            continue
        tally.whole += 1
        if min(entry[1:]) < 1:
            tokenless += 1
            continue
        entries.append(entry)
        if len(entries) == (limit or MAX_REQUESTS):
            break
    if not entries:
        raise ValueError(f"{path} has no whole request with prompt and output tokens")
    entries.sort(key=lambda entry: entry[0])
    start = entries[0][0]
    return Trace(
        name=path.name.partition(".")[0],
        format=form.name,
        times=tuple(round(at - start, 6) for at, _, _ in entries),
        pairs=tuple((prompt, output) for _, prompt, output in entries),
        tally=tally,
        tokenless=tokenless,
    )


def csv_format(header: Sequence[str]) -> Format | None:
    """The trace format whose columns a CSV's header has."""
    names = {name.strip().lower() for name in header}
    return next((form for form in CSV_FORMATS if names.issuperset(form.columns)), None)


def is_mooncake(record: Any) -> bool:
    return isinstance(record, dict) and record.keys() >= set(MOONCAKE.columns)


def _open(path: Path, tally: ReadReport) -> tuple[Format, Iterator[Sequence[Any]]]:
    """The format, and (time, prompt tokens, output tokens) of each record as they are written."""
    if looks_like_json(path):
        return MOONCAKE, _json_entries(json_records(tally))
    rows = csv_rows(tally)
    header = [name.strip().lower() for name in next(rows, [])]
    form = csv_format(header)
    if form is None:
        known = "; ".join(f"{form.name}: {', '.join(form.columns)}" for form in (*CSV_FORMATS, MOONCAKE))
        raise ValueError(
            f"{path} is no trace: it has the columns {', '.join(header) or 'none'}. Known: {known}"
        )
    return form, _csv_entries(rows, [header.index(name) for name in form.columns])


def _csv_entries(rows: Iterator[list[str]], at: Sequence[int]) -> Iterator[Sequence[Any]]:
    for row in rows:
        yield [row[i].strip() for i in at] if len(row) > max(at) else ()


def _json_entries(records: Iterator[Any]) -> Iterator[Sequence[Any]]:
    for record in records:
        yield [record[name] for name in MOONCAKE.columns] if is_mooncake(record) else ()


def _entry(row: Sequence[Any], form: Format) -> Entry:
    when, prompt, output = row
    seconds = form.seconds(when)
    if not math.isfinite(seconds):
        raise ValueError(f"{when!r} is no time")
    return seconds, _tokens(prompt), _tokens(output)


def _tokens(value: Any) -> int:
    """A failed request's 0 or empty field is 0."""
    count = float(value or 0)
    if isinstance(value, bool) or not (0 <= count <= MAX_LENGTH and count.is_integer()):
        raise ValueError(f"{value!r} is no number of tokens")
    return int(count)


def _date_time(text: str) -> float:
    """Seconds since 1970; a time without a zone is taken as UTC's."""
    match = DATE_TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no date and time")
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
        raise ValueError(f"{value!r} is no number of milliseconds")
    return float(value) / 1000


CSV_FORMATS = (
    Format("azure", ("timestamp", "contexttokens", "generatedtokens"), _date_time),
    Format("burstgpt", ("timestamp", "request tokens", "response tokens"), float),
    Format("plain", ("timestamp", "prompt_tokens", "output_tokens"), float),
)
MOONCAKE = Format("mooncake", ("timestamp", "input_length", "output_length"), _milliseconds)
