"""What requests look like: each dataset gives an endless, seeded row of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fgbench.workload.lengths import MAX_LENGTH, LengthDistribution
from fgbench.workload.texts import TextPair

if TYPE_CHECKING:
    from numpy.random import Generator

TEXTS_PER_BATCH = 64
MIX_BLOCK = 200
"""Requests among which the shares of a mix are exact."""

TokenCounter = Callable[[Sequence[str]], list[int]]
"""Texts -> number of tokens of each."""
Fits = Callable[[int, int], bool]
"""Whether a request of so many prompt and output tokens is sent."""


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


def any_length(prompt_tokens: int, output_tokens: int) -> bool:
    return 1 <= prompt_tokens <= MAX_LENGTH and 1 <= output_tokens <= MAX_LENGTH


@dataclass(frozen=True, slots=True)
class Lengths:
    """A table of (prompt tokens, output tokens)."""

    name: str
    pairs: tuple[tuple[int, int], ...]
    in_order: bool = False
    """As they stand, as a trace's are; else in an order drawn."""

    def samples(self, rng: Generator) -> Iterator[Sample]:
        while True:
            count = len(self.pairs)
            for i in range(count) if self.in_order else rng.permutation(count):
                yield Sample(*self.pairs[i])


@dataclass(frozen=True, slots=True)
class Texts:
    """Real prompts. A completion counts by its length; tokens are counted as samples are asked for, so a run
    of 100 prompts tokenizes some hundred texts and not a hundred thousand."""

    name: str
    pairs: Sequence[TextPair]
    count_tokens: TokenCounter
    fits: Fits
    output_lengths: LengthDistribution | None = None
    """Of answers whose length the data does not tell; must be given where there are such."""

    def samples(self, rng: Generator) -> Iterator[Sample]:
        """Raises ValueError when no pair passes the filter of lengths."""
        while True:
            given = False
            for sample in self.once(rng):
                given = True
                yield sample
            if not given:
                raise ValueError(f"dataset {self.name}: no conversation passes the filter of lengths")

    def once(self, rng: Generator) -> Iterator[Sample]:
        """Each pair that passes the filter of lengths, in an order drawn."""
        order = rng.permutation(len(self.pairs)).tolist()
        for start in range(0, len(order), TEXTS_PER_BATCH):
            batch = [self.pairs[i] for i in order[start : start + TEXTS_PER_BATCH]]
            prompts = self.count_tokens([pair.prompt for pair in batch])
            for pair, n, m in zip(batch, prompts, self._output_tokens(batch, rng), strict=True):
                if self.fits(n, m):
                    yield Sample(n, m, pair.prompt)

    def _output_tokens(self, batch: Sequence[TextPair], rng: Generator) -> list[int]:
        counts = self.count_tokens([pair.completion for pair in batch])
        lengths = self.output_lengths
        return [
            pair.output_tokens or count or (lengths.draw(rng) if lengths else 0)
            for pair, count in zip(batch, counts, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Lengths drawn from two distributions; every request is new."""

    prompt_lengths: LengthDistribution
    output_lengths: LengthDistribution

    @property
    def name(self) -> str:
        return f"synthetic-{self.prompt_lengths.name}x{self.output_lengths.name}"

    def samples(self, rng: Generator) -> Iterator[Sample]:
        while True:
            prompt = self.prompt_lengths.draw(rng)
            yield Sample(prompt, self.output_lengths.draw(rng))


@dataclass(frozen=True, slots=True)
class Mix:
    """Several datasets in fixed shares: exact in every ``MIX_BLOCK`` requests, whose order is drawn."""

    parts: tuple[tuple[Dataset, float], ...]
    """Each with its share; the shares sum to 1."""

    @property
    def name(self) -> str:
        return "mix-" + "-".join(f"{part.name}-{share:g}" for part, share in self.parts)

    def samples(self, rng: Generator) -> Iterator[Sample]:
        streams = rng.spawn(len(self.parts))
        rows = [part.samples(stream) for (part, _), stream in zip(self.parts, streams, strict=True)]
        turns = [i for i, count in enumerate(self.counts()) for _ in range(count)]
        while True:
            for turn in rng.permutation(turns).tolist():
                yield next(rows[turn])

    def counts(self) -> list[int]:
        """Requests of each part among ``MIX_BLOCK``: its share rounded down, what is left to those that
        lost most by it."""
        wanted = [share * MIX_BLOCK for _, share in self.parts]
        counts = [int(number + 1e-9) for number in wanted]
        by_loss = sorted(range(len(wanted)), key=lambda i: counts[i] - wanted[i])
        for i in by_loss[: MIX_BLOCK - sum(counts)]:
            counts[i] += 1
        return counts


def token_counter(folder: Path) -> TokenCounter:
    """Counts with the tokenizer.json in a model's folder; special tokens are not counted."""
    from fgengine.text import open_tokenizer

    tokenizer = open_tokenizer(folder)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(e.ids) for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    return count
