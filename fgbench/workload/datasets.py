"""The kinds of datasets. Each one yields an endless sequence of samples that depends on a seed."""

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
"""Number of requests in which the shares of a mix are exact."""

TokenCounter = Callable[[Sequence[str]], list[int]]
"""Texts -> number of tokens of each text."""
Fits = Callable[[int, int], bool]
"""Takes prompt tokens and output tokens; returns whether such a request is sent."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The prompt and the length of one request."""

    prompt_tokens: int
    output_tokens: int
    text: str | None = None
    """The prompt; None: only its length is known, and random token ids are used."""
    shared: tuple[tuple[str, int], ...] = ()
    """Segments at the beginning of a prompt of token ids: a name and a number of tokens. Segments of the same
    name have the same tokens in every prompt."""
    turn: int = 0
    """Position in a conversation; the samples of a conversation follow each other. 0: the first turn."""
    conversation: str = ""
    """Name of the conversation, if others come between its turns, as in a trace. Empty: its turns follow each
    other."""
    messages: tuple[str, ...] = ()
    """The texts of a conversation up to this question, for chats; empty: only ``text``."""


class Dataset(Protocol):
    """A source of samples."""

    @property
    def name(self) -> str:
        """Name in run folders and tables."""
        ...

    def samples(self, rng: Generator) -> Iterator[Sample]:
        """Yield samples without end. A sample is repeated only after all others were yielded."""
        ...


def any_length(prompt_tokens: int, output_tokens: int) -> bool:
    """Whether both lengths are between 1 and ``MAX_LENGTH`` tokens."""
    return 1 <= prompt_tokens <= MAX_LENGTH and 1 <= output_tokens <= MAX_LENGTH


@dataclass(frozen=True, slots=True)
class Lengths:
    """A table of (prompt tokens, output tokens)."""

    name: str
    pairs: tuple[tuple[int, int], ...]
    in_order: bool = False
    """Whether samples have the order of ``pairs``, as for a trace; False: a random order."""
    shared: tuple[tuple[tuple[str, int], ...], ...] = ()
    """The shared segments of each prompt, as of ``Sample``; empty: prompts share nothing."""
    turns: tuple[tuple[str, int], ...] = ()
    """Conversation and turn of each sample, as of ``Sample``; empty: there are no conversations."""

    def samples(self, rng: Generator) -> Iterator[Sample]:
        """Yield samples without end."""
        while True:
            count = len(self.pairs)
            for i in range(count) if self.in_order else rng.permutation(count):
                shared = self.shared[i] if self.shared else ()
                conversation, turn = self.turns[i] if self.turns else ("", 0)
                yield Sample(*self.pairs[i], shared=shared, turn=turn, conversation=conversation)


@dataclass(frozen=True, slots=True)
class Texts:
    """Real prompts, with completions of which only the length matters.

    Tokens are counted when samples are needed. So a run of 100 prompts tokenizes a few hundred texts, not a
    hundred thousand.
    """

    name: str
    pairs: Sequence[TextPair]
    count_tokens: TokenCounter
    fits: Fits
    output_lengths: LengthDistribution | None = None
    """Output lengths for pairs without one; required if there are such pairs."""

    def samples(self, rng: Generator) -> Iterator[Sample]:
        """Yield samples without end. Raises ValueError if no pair has an accepted length."""
        while True:
            is_empty = True
            for sample in self.once(rng):
                is_empty = False
                yield sample
            if is_empty:
                raise ValueError(
                    f"dataset {self.name}: no conversation has an accepted length: use another dataset"
                )

    def once(self, rng: Generator) -> Iterator[Sample]:
        """Yield each pair with an accepted length once, in random order."""
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
    """Lengths drawn from two distributions."""

    prompt_lengths: LengthDistribution
    output_lengths: LengthDistribution

    @property
    def name(self) -> str:
        return f"synthetic-{self.prompt_lengths.name}x{self.output_lengths.name}"

    def samples(self, rng: Generator) -> Iterator[Sample]:
        """Yield new samples without end."""
        while True:
            prompt = self.prompt_lengths.draw(rng)
            yield Sample(prompt, self.output_lengths.draw(rng))


@dataclass(frozen=True, slots=True)
class Mix:
    """Several datasets in fixed shares.

    The shares are exact in every block of ``MIX_BLOCK`` requests. The order in a block is random.
    """

    parts: tuple[tuple[Dataset, float], ...]
    """Datasets with their shares, which sum to 1."""

    @property
    def name(self) -> str:
        return "mix-" + "-".join(f"{part.name}-{share:g}" for part, share in self.parts)

    def samples(self, rng: Generator) -> Iterator[Sample]:
        """Yield samples without end."""
        streams = rng.spawn(len(self.parts))
        sources = [part.samples(stream) for (part, _), stream in zip(self.parts, streams, strict=True)]
        block = [i for i, count in enumerate(self.counts()) for _ in range(count)]
        while True:
            for part in rng.permutation(block).tolist():
                yield next(sources[part])

    def counts(self) -> list[int]:
        """Return each part's number of requests per ``MIX_BLOCK`` requests (largest remainder method)."""
        exact = [share * MIX_BLOCK for _, share in self.parts]
        counts = [int(number + 1e-9) for number in exact]
        by_loss = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
        for i in by_loss[: MIX_BLOCK - sum(counts)]:
            counts[i] += 1
        return counts


def token_counter(folder: Path) -> TokenCounter:
    """Return a counter that uses the tokenizer.json in a model's folder; it counts no special tokens."""
    from fgengine.model.tokenizer_files import open_tokenizer

    tokenizer = open_tokenizer(folder)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(e.ids) for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    return count
