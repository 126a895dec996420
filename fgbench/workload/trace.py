"""Reads recorded traces: arrival times and lengths of requests, in several formats.

========= ======================================================== =========================
azure     CSV ``TIMESTAMP,ContextTokens,GeneratedTokens``          dates with times
burstgpt  CSV ``Timestamp,Model,Request tokens,Response tokens..`` seconds
vidur     CSV ``arrived_at,num_prefill_tokens,num_decode_tokens``  seconds
splitwise CSV ``arrival_timestamp,prompt_size,token_size``         seconds
plain     CSV ``timestamp,prompt_tokens,output_tokens``            seconds
mooncake  JSONL ``{"timestamp", "input_length", "output_length"}`` milliseconds or seconds
========= ======================================================== =========================

The last column is the unit of the time. Mooncake's unit is the millisecond, but others write the same keys
with seconds. The values decide; if they cannot, the user must give the unit. The user can also name the
columns.

The columns of a CSV file may have any order, and other columns are ignored. Files may be compressed with
gzip. A Parquet file is read like a CSV file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from fgbench.workload.arrivals import TimeUnit
from fgbench.workload.datasets import Lengths
from fgbench.workload.lengths import MAX_LENGTH
from fgbench.workload.records import ReadReport, csv_rows, json_records, looks_like_json

SECONDS: dict[TimeUnit, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
UNIT_NAMES: dict[TimeUnit, str] = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}
ROLES = ("time", "prompt", "output")
"""What the three columns of a trace are, in the words of ``--columns``."""
MAX_PLAUSIBLE = 200.0
"""Requests per second above which whole numbers without other evidence are not taken for milliseconds."""
IN_SECONDS = ("chat_id", "parent_chat_id", "turn")
"""Keys of Alibaba's traces, whose times are seconds."""
SESSIONS = ("session_id", "conversation_id")
"""Keys of a record that name its conversation."""
CHAT_KEYS = (*SESSIONS, "chat_id", "parent_chat_id")
"""Keys of a record that show to which conversation it belongs."""
BLOCK_SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)
"""Tokens of a prompt for which a trace has one of ``hash_ids``."""
UNUSED = {
    "hash_ids": "shared prefixes",
    "session_id": "conversations",
    "conversation_id": "conversations",
    "chat_id": "conversations",
    "parent_chat_id": "conversations",
    "delay": "think times",
    "images": "images",
    "image": "images",
    "text_input": "texts",
    "prompt": "texts",
}
"""Keys of records that say something about the load that is not replayed -> what."""
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
    columns: tuple[str, ...]
    """Names of the columns of time, prompt tokens and output tokens; for CSV in lower case."""
    number: Callable[[Any], float]
    """Converts a time in the file to a number in ``unit``. Raises ValueError if it is not a time."""
    unit: TimeUnit | None = "s"
    """The unit of the numbers; None: the values of the file decide."""


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
    unit: TimeUnit = "s"
    """The unit in which the times of the file were read."""
    unit_is_sure: bool = True
    """Whether the format or the user gives the unit."""
    unused: tuple[str, ...] = ()
    """Keys of the records that say something about the load and are not replayed."""
    shared: tuple[tuple[tuple[str, int], ...], ...] = field(default=(), repr=False)
    """The blocks of each prompt that ``hash_ids`` name, as of ``Sample.shared``; empty: there are none."""
    turns: tuple[tuple[str, int], ...] = field(default=(), repr=False)
    """Conversation and turn of each request, as of ``Sample``; empty: the trace has no conversations."""
    tokenless: int = 0
    """Number of requests left out because they have no prompt or output tokens: they failed."""

    @property
    def dataset(self) -> Lengths:
        """The lengths of the requests, in order."""
        return Lengths(self.name, self.pairs, in_order=True, shared=self.shared)

    @property
    def conversations(self) -> Lengths:
        """The lengths of the requests, in order, with their conversations. ValueError if there are none."""
        if not self.turns:
            raise ValueError(
                f"--multi-turn needs a trace with {' or '.join(SESSIONS)}, or with chat_id and "
                f"parent_chat_id, and {self.tally.path} has none of them: leave it out"
            )
        return replace(self.dataset, turns=self.turns)

    @property
    def notes(self) -> list[str]:
        """Sentences about left-out requests."""
        sentences = [self.tally.loss] if self.tally.loss else []
        if not self.unit_is_sure:
            sentences.append(
                f"{self.tally.path.name}: its times are read as {UNIT_NAMES[self.unit]}; --time-unit gives "
                "another unit"
            )
        unused = [key for key in self.unused if not (self.turns and key in CHAT_KEYS)]
        if unused:
            what = ", ".join(dict.fromkeys(UNUSED[key] for key in unused))
            sentences.append(f"{self.tally.path.name}: {what} ({', '.join(unused)}) are not replayed")
        if self.turns:
            sentences.append(f"{self.tally.path.name}: --multi-turn replays its conversations")
        if self.tokenless:
            sentences.append(
                f"{self.tally.path.name}: {self.tokenless:,} requests without prompt or output tokens "
                "(they failed when recorded) are left out"
            )
        if len(self.times) == MAX_REQUESTS:
            sentences.append(f"{self.tally.path.name}: only the first {MAX_REQUESTS:,} requests are read")
        return sentences


def read_trace(
    path: Path,
    limit: int | None = None,
    *,
    skip: int = 0,
    time_unit: TimeUnit | None = None,
    columns: Mapping[str, str] | None = None,
) -> Trace:
    """Read a trace from a file.

    Args:
        limit: Read only the first requests, at most this number.
        skip: Records to leave out before them. They are not stored, so a window of a very large trace needs
            little memory.
        time_unit: Unit of the times, if they are numbers. None: the format's, or what the values show.
        columns: Names of the columns (or keys) for each of ``ROLES``. None: those of a known format.

    Raises:
        ValueError: the file has no known format or no complete request, or the unit of its times is not
            known.
        OSError: the file cannot be read.
    """
    if limit is not None and not 1 <= limit <= MAX_REQUESTS:
        raise ValueError(f"--limit must be between 1 and {MAX_REQUESTS}, not {limit}")
    tally = ReadReport(path)
    keys: set[str] = set()
    trace_format, rows = _open(path, tally, columns, keys)
    entries: list[Entry] = []
    blocks: list[tuple[int, ...]] = []
    chats: list[Mapping[str, Any]] = []
    tokenless = 0
    for number, row in enumerate(islice(rows, skip, None), skip + 1):
        try:
            entry = _entry(row, trace_format)
        except (ValueError, TypeError, LookupError, OverflowError) as error:
            tally.broken += 1
            tally.example = tally.example or f"record {number:,}: {error or 'columns are missing'}"
            continue
        tally.complete += 1
        if min(entry[1:]) < 1:
            tokenless += 1
            continue
        if time_unit is not None and not entries and _is_date(row[0]):
            raise ValueError(f"{path}: its times are dates, which have no unit: leave out --time-unit")
        entries.append(entry)
        blocks.append(_hash_ids(row))
        record = row[-1] if isinstance(row[-1], Mapping) else {}
        chats.append({key: record[key] for key in CHAT_KEYS if key in record})
        if len(entries) == (limit or MAX_REQUESTS):
            break
    if not entries:
        first = f" (the first problem: {tally.example})" if tally.example else ""
        after = f" after {skip:,} records" if skip else ""
        raise ValueError(
            f"{path} has no complete request{after} with a time, prompt tokens and output tokens{first}: "
            "give another trace, or name its columns with --columns"
        )
    order = sorted(range(len(entries)), key=lambda i: entries[i][0])
    entries, blocks = [entries[i] for i in order], [blocks[i] for i in order]
    shared = _shared_blocks(blocks, [prompt for _, prompt, _ in entries])
    start = entries[0][0]
    unit = time_unit or trace_format.unit or _likely_unit([at - start for at, _, _ in entries], keys, path)
    factor = 1.0 if trace_format.number is _date_time else SECONDS[unit]
    return Trace(
        name=path.name.partition(".")[0],
        format=trace_format.name,
        times=tuple(round((at - start) * factor, 6) for at, _, _ in entries),
        pairs=tuple((prompt, output) for _, prompt, output in entries),
        tally=tally,
        unit=unit,
        unit_is_sure=time_unit is not None or trace_format.unit is not None,
        unused=tuple(key for key in UNUSED if key in keys and not (key == "hash_ids" and shared)),
        shared=shared,
        turns=_turns([chats[i] for i in order]),
        tokenless=tokenless,
    )


def parse_columns(text: str) -> dict[str, str]:
    """Parse ``--columns``, such as ``time=at,prompt=in,output=out``. Raises ValueError if one is missing."""
    found = {}
    for part in text.split(","):
        role, equals, name = part.partition("=")
        if not equals or role.strip() not in ROLES or not name.strip():
            raise ValueError(f"--columns: {part.strip()!r} is not one of time=NAME, prompt=NAME, output=NAME")
        found[role.strip()] = name.strip()
    if missing := [role for role in ROLES if role not in found]:
        raise ValueError(f"--columns lacks {', '.join(missing)}: write time=NAME,prompt=NAME,output=NAME")
    return found


def _likely_unit(times: Sequence[float], keys: Collection[str], path: Path) -> TimeUnit:
    """Return the unit that the values show. ``times``: numbers since the first request, ascending.

    Raises ValueError if they show none.
    """
    if any(key in keys for key in IN_SECONDS) or not all(float(at).is_integer() for at in times):
        return "s"  # no trace has fractions of a millisecond
    rate = len(times) / (times[-1] * SECONDS["ms"]) if times[-1] > 0 else math.inf
    if rate > MAX_PLAUSIBLE and "hash_ids" not in keys and len(times) > 1:
        raise ValueError(
            f"{path}: its times may be seconds or milliseconds ({len(times):,} requests in "
            f"{times[-1]:g}): say which with --time-unit s or --time-unit ms"
        )
    return "ms"


def csv_format(header: Sequence[str]) -> Format | None:
    """Return the trace format whose columns the header of a CSV file has; None if there is none."""
    names = {name.strip().lower() for name in header}
    return next((each for each in CSV_FORMATS if names.issuperset(each.columns)), None)


def is_mooncake(record: Any) -> bool:
    """Whether the record has the keys of Mooncake's format."""
    return isinstance(record, dict) and record.keys() >= set(MOONCAKE.columns)


def _open(
    path: Path, tally: ReadReport, columns: Mapping[str, str] | None, keys: set[str]
) -> tuple[Format, Iterator[Sequence[Any]]]:
    """Return the format, and the unconverted (time, prompt tokens, output tokens) of each record.

    Adds the keys of JSON records to ``keys``.
    """
    own = columns and Format("columns", tuple(columns[role] for role in ROLES), _any_time)
    if is_parquet(path):
        header, rows = _parquet(path)
    elif looks_like_json(path):
        found = own or MOONCAKE
        return found, _json_entries(json_records(tally), found.columns, keys)
    else:
        rows = csv_rows(tally)
        header = [name.strip() for name in next(rows, [])]
    keys.update(set(header) & set(UNUSED) - {"prompt"})  # a column of tokens may be called so
    ids_at = header.index("hash_ids") if "hash_ids" in header else None
    if own:
        if missing := [name for name in own.columns if name not in header]:
            raise ValueError(
                f"{path} has no column {', '.join(missing)} (it has {', '.join(header)}): correct --columns"
            )
        return own, _csv_entries(rows, [header.index(name) for name in own.columns], ids_at)
    lower = [name.lower() for name in header]
    known_format = csv_format(header)
    if known_format is None:
        known = "; ".join(f"{each.name}: {', '.join(each.columns)}" for each in (*CSV_FORMATS, MOONCAKE))
        raise ValueError(
            f"{path} is not a trace (its columns: {', '.join(header) or 'none'}): give a file with the "
            f"columns of a known format ({known}), or name its columns with --columns"
        )
    return known_format, _csv_entries(rows, [lower.index(name) for name in known_format.columns], ids_at)


def is_parquet(path: Path) -> bool:
    """Whether a file has Parquet's format."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _parquet(path: Path) -> tuple[list[str], Iterator[list[Any]]]:
    """Return the names of the columns, and the rows. Raises ValueError if the file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None

    def rows() -> Iterator[list[Any]]:
        for batch in file.iter_batches():
            yield from (list(row) for row in zip(*(column.to_pylist() for column in batch), strict=True))

    return list(file.schema_arrow.names), rows()


def _csv_entries(rows: Iterator[list[Any]], at: Sequence[int], ids_at: int | None) -> Iterator[Sequence[Any]]:
    """Yield the columns ``at`` of each row, and its ids of blocks, which only Parquet has as a list."""
    for row in rows:
        values = [row[i] for i in at] if len(row) > max(at) else []
        ids = [row[ids_at]] if values and ids_at is not None and ids_at < len(row) else []
        yield [*(value.strip() if isinstance(value, str) else value for value in values), *ids]


def _json_entries(records: Iterator[Any], names: Sequence[str], keys: set[str]) -> Iterator[Sequence[Any]]:
    for record in records:
        if isinstance(record, dict):
            keys.update(record)
        is_whole = isinstance(record, dict) and record.keys() >= set(names)
        ids = record.get("hash_ids", ()) if isinstance(record, dict) else ()
        yield [*(record[name] for name in names), ids, record] if is_whole else ()


def _entry(row: Sequence[Any], trace_format: Format) -> Entry:
    """Convert a row. Raises ValueError, TypeError, LookupError or OverflowError if it is malformed."""
    if len(row) < len(ROLES):
        raise ValueError("columns are missing")
    time, prompt, output = row[: len(ROLES)]
    at = trace_format.number(time)
    if not math.isfinite(at):
        raise ValueError(f"{time!r} is not a time")
    return at, _tokens(prompt), _tokens(output)


def _hash_ids(row: Sequence[Any]) -> tuple[int, ...]:
    """Return the ids of a prompt's blocks; none if they are missing or malformed."""
    ids = row[len(ROLES)] if len(row) > len(ROLES) else ()
    whole = isinstance(ids, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in ids)
    return tuple(ids) if whole else ()


def _turns(records: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, int], ...]:
    """Return conversation and turn of each record, in order of time; empty if there are no conversations.

    A record names its session, or its own chat and the one that it continues.
    """
    found: list[tuple[str, int]] = []
    of_chat: dict[str, tuple[str, int]] = {}
    sent: dict[str, int] = {}
    for i, record in enumerate(records):
        session = next((record[key] for key in SESSIONS if record.get(key) not in (None, "")), None)
        if session is not None:
            name = str(session)
            turn = sent.get(name, 0)
            sent[name] = turn + 1
        else:
            name, turn = of_chat.get(str(record.get("parent_chat_id")), (f"request {i}", -1))
            turn += 1
            if "chat_id" in record:
                of_chat[str(record["chat_id"])] = name, turn
        found.append((name, turn))
    return tuple(found) if any(turn for _, turn in found) else ()


def _shared_blocks(
    blocks: Sequence[tuple[int, ...]], prompts: Sequence[int]
) -> tuple[tuple[tuple[str, int], ...], ...]:
    """Return the blocks of each prompt as shared segments; empty if the blocks do not fit the prompts.

    Prompts with the same id at one place have the same tokens up to there.
    """
    if not any(blocks):
        return ()
    fitting = (
        size
        for size in BLOCK_SIZES
        if all(len(ids) == -(-prompt // size) for ids, prompt in zip(blocks, prompts, strict=True) if ids)
    )
    size = next(fitting, None)
    if size is None:
        return ()
    return tuple(
        tuple((f"block {one}", min(size, prompt - i * size)) for i, one in enumerate(ids))
        for ids, prompt in zip(blocks, prompts, strict=True)
    )


def _tokens(value: Any) -> int:
    """Convert a number of tokens; 0 or an empty field, as for a failed request, is 0."""
    count = float(value or 0)
    if isinstance(value, bool) or not (0 <= count <= MAX_LENGTH and count.is_integer()):
        raise ValueError(f"{value!r} is not a number of tokens")
    return int(count)


def _date_time(text: Any) -> float:
    """Convert a date with time to seconds since 1970. A time without a zone is assumed to be UTC."""
    if isinstance(text, datetime):
        return text.replace(tzinfo=text.tzinfo or timezone.utc).timestamp()
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


def _plain_number(value: Any) -> float:
    if isinstance(value, (bool, str)):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _is_date(value: Any) -> bool:
    """Whether a time in a file is a date with a time."""
    return isinstance(value, datetime) or (isinstance(value, str) and bool(DATE_TIME.fullmatch(value)))


def _any_time(value: Any) -> float:
    """Convert a number, a text with a number, or a date with a time, which becomes seconds since 1970."""
    return _date_time(value) if _is_date(value) else float(value)


CSV_FORMATS = (
    Format("azure", ("timestamp", "contexttokens", "generatedtokens"), _date_time),
    Format("burstgpt", ("timestamp", "request tokens", "response tokens"), float),
    Format("vidur", ("arrived_at", "num_prefill_tokens", "num_decode_tokens"), float),
    Format("splitwise", ("arrival_timestamp", "prompt_size", "token_size"), float),
    Format("plain", ("timestamp", "prompt_tokens", "output_tokens"), float),
)
MOONCAKE = Format("mooncake", ("timestamp", "input_length", "output_length"), _plain_number, None)
