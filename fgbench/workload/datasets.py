"""What requests look like: each dataset gives an endless, seeded row of samples."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fgbench.workload.sharegpt import TextPair, length_ok

if TYPE_CHECKING:
    from numpy.random import Generator

MAX_LENGTH = 1_000_000
"""Longest prompt or output accepted, tokens."""
TEXTS_PER_BATCH = 64

TokenCounter = Callable[[Sequence[str]], list[int]]
"""Texts -> number of tokens of each."""


@dataclass(frozen=True, slots=True)
class Sample:
    prompt_tokens: int
    output_tokens: int
    text: str | None = None
    """None: only the lengths are known, and the prompt is made of random token ids."""


class Dataset(Protocol):
    @property
    def name(self) -> str: ...

    def samples(self, rng: Generator) -> Iterator[Sample]:
        """Endless. Without replacement: a sample returns only after every other has been given."""
        ...


@dataclass(frozen=True, slots=True)
class Lengths:
    """A table of (prompt tokens, output tokens)."""

    name: str
    pairs: tuple[tuple[int, int], ...]

    def samples(self, rng: Generator) -> Iterator[Sample]:
        while True:
            for i in rng.permutation(len(self.pairs)):
                yield Sample(*self.pairs[i])


@dataclass(frozen=True, slots=True)
class Texts:
    """Real conversations. A completion counts by its length; tokens are counted as samples are asked for,
    so a run of 100 prompts tokenizes some hundred texts and not a hundred thousand."""

    name: str
    pairs: Sequence[TextPair]
    count_tokens: TokenCounter

    def samples(self, rng: Generator) -> Iterator[Sample]:
        """Raises ValueError when no pair passes the filter of lengths."""
        while True:
            order = rng.permutation(len(self.pairs)).tolist()
            given = False
            for start in range(0, len(order), TEXTS_PER_BATCH):
                batch = [self.pairs[i] for i in order[start : start + TEXTS_PER_BATCH]]
                prompts = self.count_tokens([pair.prompt for pair in batch])
                outputs = self.count_tokens([pair.completion for pair in batch])
                for pair, n, m in zip(batch, prompts, outputs, strict=True):
                    if length_ok(n, m):
                        given = True
                        yield Sample(n, m, pair.prompt)
            if not given:
                raise ValueError(f"dataset {self.name}: no conversation passes the filter of lengths")


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Lengths drawn uniformly from two inclusive ranges."""

    prompt_range: tuple[int, int]
    output_range: tuple[int, int]

    @property
    def name(self) -> str:
        return f"synthetic-{_range_name(self.prompt_range)}x{_range_name(self.output_range)}"

    def samples(self, rng: Generator) -> Iterator[Sample]:
        while True:
            prompt = int(rng.integers(*self.prompt_range, endpoint=True))
            yield Sample(prompt, int(rng.integers(*self.output_range, endpoint=True)))


def parse_range(text: str) -> tuple[int, int]:
    """``"128"`` or ``"16-512"`` as an inclusive range of tokens; ValueError for anything else."""
    low, dash, high = text.partition("-")
    try:
        bounds = (int(low), int(high) if dash else int(low))
    except ValueError:
        raise ValueError(f"a length is a number of tokens or a range such as 16-512, not {text!r}") from None
    if not 1 <= bounds[0] <= bounds[1] <= MAX_LENGTH:
        raise ValueError(f"lengths must be ordered and between 1 and {MAX_LENGTH} tokens, not {text!r}")
    return bounds


def read_lengths(path: Path, name: str) -> Lengths:
    """A CSV file, gzip or not, with the columns prompt_tokens and output_tokens.

    Raises ValueError naming the first bad row; OSError when the file cannot be read.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    pairs: list[tuple[int, int]] = []
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not {"prompt_tokens", "output_tokens"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path} must have the columns prompt_tokens and output_tokens")
        for row in rows:
            try:
                pair = (int(row["prompt_tokens"]), int(row["output_tokens"]))
            except (TypeError, ValueError):
                raise ValueError(f"{path}, line {rows.line_num}: lengths must be whole numbers") from None
            if not all(1 <= n <= MAX_LENGTH for n in pair):
                raise ValueError(f"{path}, line {rows.line_num}: lengths must be between 1 and {MAX_LENGTH}")
            pairs.append(pair)
    if not pairs:
        raise ValueError(f"{path} has no rows")
    return Lengths(name, tuple(pairs))


def token_counter(folder: Path) -> TokenCounter:
    """Counts with the tokenizer.json in a model's folder; special tokens are not counted."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no tokenizer.json to count tokens with")
    tokenizer = Tokenizer.from_file(str(path))

    def count(texts: Sequence[str]) -> list[int]:
        return [len(e.ids) for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    return count


def _range_name(bounds: tuple[int, int]) -> str:
    low, high = bounds
    return str(low) if low == high else f"{low}-{high}"
