"""Datasets made from another one: with shorter requests only, or with a common beginning of all prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fgbench.workload.datasets import Dataset, Sample

if TYPE_CHECKING:
    from numpy.random import Generator

MAX_LEFT_OUT = 100_000
"""Number of samples in a row that may be left out."""


@dataclass(frozen=True, slots=True)
class Bounded:
    """A dataset without the samples that have too many tokens, or with shorter ones in their place.

    Raises ValueError if a trace's requests would be left out, because its times belong to its requests.
    """

    source: Dataset
    max_total: int
    """Most prompt and output tokens of a sample together."""
    clip: bool
    """Whether to shorten longer samples; otherwise they are left out."""

    def __post_init__(self) -> None:
        if self.in_order and not self.clip:
            raise ValueError("--max-total-len needs --clip with a trace, whose times belong to its requests")

    @property
    def name(self) -> str:
        return f"{self.source.name}-{'clip' if self.clip else 'max'}{self.max_total}"

    @property
    def in_order(self) -> bool:
        """Whether samples have the order of a trace."""
        return bool(getattr(self.source, "in_order", False))

    def samples(self, rng: Generator) -> Iterator[Sample]:
        """Yield samples without end. Raises ValueError if none of very many fits."""
        left_out = 0
        for sample in self.source.samples(rng):
            fitting = self._fitting(sample)
            if fitting is not None:
                left_out = 0
                yield fitting
            elif (left_out := left_out + 1) == MAX_LEFT_OUT:
                raise ValueError(
                    f"dataset {self.source.name}: none of {MAX_LEFT_OUT:,} requests has at most "
                    f"{self.max_total} tokens: raise --max-total-len, or add --clip"
                )

    def _fitting(self, sample: Sample) -> Sample | None:
        """Return the sample, or a shorter one; None: it is left out. A text cannot be shortened."""
        if sample.prompt_tokens + sample.output_tokens <= self.max_total:
            return sample
        prompt = (
            sample.prompt_tokens if sample.text is not None else min(sample.prompt_tokens, self.max_total - 1)
        )
        if not self.clip or prompt >= self.max_total:
            return None
        return replace(
            sample,
            prompt_tokens=prompt,
            output_tokens=self.max_total - prompt,
            shared=_cut(sample.shared, prompt),
        )


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """A dataset of lengths whose prompts all begin with the same tokens, as after a system prompt."""

    source: Dataset
    share: float
    """Share of each prompt that it has in common with all others, 0 to 1."""

    @property
    def name(self) -> str:
        return f"{self.source.name}-prefix{self.share:g}"

    @property
    def in_order(self) -> bool:
        """Whether samples have the order of a trace."""
        return bool(getattr(self.source, "in_order", False))

    def samples(self, rng: Generator) -> Iterator[Sample]:
        """Yield samples without end. Raises ValueError if they are texts, or share tokens already."""
        for sample in self.source.samples(rng):
            if sample.text is not None or sample.shared:
                raise ValueError(
                    f"--prefix-share does not work with the dataset {self.source.name}, which has prompts of "
                    "its own: use one of lengths, such as --dataset synthetic"
                )
            common = round(self.share * sample.prompt_tokens)
            yield replace(sample, shared=(("prefix", common),) if common else ())


def _cut(shared: tuple[tuple[str, int], ...], tokens: int) -> tuple[tuple[str, int], ...]:
    """Return the segments within the first ``tokens`` tokens."""
    kept = []
    for name, length in shared:
        if tokens <= 0:
            break
        kept.append((name, min(length, tokens)))
        tokens -= length
    return tuple(kept)
