"""Tables of lengths: a CSV's columns prompt_tokens and output_tokens, or such counts one record a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fgbench.workload.datasets import Lengths, any_length
from fgbench.workload.records import Tally, csv_rows, json_records, looks_like_json
from fgbench.workload.texts import lengths_pair

COLUMNS = ("prompt_tokens", "output_tokens")
MAX_ROWS = 10_000_000
"""Of one file; what follows is not read."""


def read_lengths(path: Path, name: str, report: Callable[[str], None] = lambda line: None) -> Lengths:
    """The table in a CSV or JSONL file, gzip or not; ``report`` is told of rows that are left out.

    Raises:
        ValueError: the columns are missing, or no row has whole numbers of tokens.
        OSError: the file cannot be read.
    """
    tally = Tally(path)
    pairs: list[tuple[int, int]] = []
    for pair in _json_pairs(tally) if looks_like_json(path) else _csv_pairs(tally):
        if pair is None:
            tally.broken += 1
            continue
        tally.whole += 1
        pairs.append(pair)
        if len(pairs) == MAX_ROWS:
            break
    if not pairs:
        raise ValueError(f"{path} has no rows with whole numbers of tokens in {' and '.join(COLUMNS)}")
    if tally.loss:
        report(tally.loss)
    return Lengths(name, tuple(pairs))


def has_lengths(header: list[str]) -> bool:
    return set(COLUMNS) <= {name.strip() for name in header}


def _csv_pairs(tally: Tally) -> Iterator[tuple[int, int] | None]:
    """None for a row that is no pair of lengths."""
    rows = csv_rows(tally)
    header = [name.strip() for name in next(rows, [])]
    if not has_lengths(header):
        raise ValueError(f"{tally.path} must have the columns {' and '.join(COLUMNS)}")
    prompt, output = (header.index(name) for name in COLUMNS)
    for row in rows:
        try:
            pair = (int(row[prompt]), int(row[output]))
        except (LookupError, ValueError):
            yield None
            continue
        yield pair if any_length(*pair) else None


def _json_pairs(tally: Tally) -> Iterator[tuple[int, int] | None]:
    def pair(record: Any) -> tuple[int, int] | None:
        try:
            return lengths_pair(record)
        except ValueError:
            return None

    yield from map(pair, json_records(tally))
