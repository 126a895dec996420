"""What a dataset is like: how many records, how long. For people, before they benchmark with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from fgbench.metrics.statistics import Distribution
from fgbench.workload.datasets import Dataset, Lengths, Sample, Texts
from fgbench.workload.trace import Trace


@dataclass(frozen=True, slots=True)
class Look:
    name: str
    records: int | None
    """None: the dataset is endless."""
    looked_at: int
    """Records whose lengths were counted: all, or as many as were asked for, drawn by the seed."""
    too_long_or_short: int
    """Of these, left out by the dataset's filter of lengths."""
    prompts: tuple[int, ...]
    outputs: tuple[int, ...]
    """Tokens of the requests that are left, one each."""

    def to_dict(self) -> dict[str, Any]:
        """Counts and distributions, without the single lengths; plain JSON."""
        described = asdict(self)
        for side in ("prompts", "outputs"):
            distribution = Distribution.of(described.pop(side))
            described[f"{side[:-1]}_tokens"] = distribution.to_dict() if distribution else None
        return described


@dataclass(frozen=True, slots=True)
class Timing:
    """When a trace's requests came."""

    seconds: float
    """From the first to the last."""
    rate: float | None
    """Requests per second; None where all came at once."""
    cv: float | None
    """Deviation of the gaps over their mean; 1 for a Poisson process."""


def look(dataset: Dataset, most: int, seed: int = 0) -> Look:
    """Where that takes a tokenizer or the dataset is endless ``most`` records are looked at, else all."""
    import numpy as np

    rng = np.random.default_rng(seed)
    if isinstance(dataset, Lengths):
        samples = [Sample(*pair) for pair in dataset.pairs]
        return _look(dataset.name, len(samples), len(samples), samples)
    if isinstance(dataset, Texts):
        chosen = rng.permutation(len(dataset.pairs))[:most].tolist()
        few = replace(dataset, pairs=[dataset.pairs[i] for i in chosen])
        return _look(dataset.name, len(dataset.pairs), len(chosen), list(few.once(rng)))
    samples = list(islice(dataset.samples(rng), most))
    return _look(dataset.name, None, len(samples), samples)


def timing(trace: Trace) -> Timing:
    import numpy as np

    span = trace.times[-1]
    gaps = np.diff(trace.times)
    if not span:
        return Timing(0.0, None, None)
    return Timing(span, len(gaps) / span, float(gaps.std() / gaps.mean()))


def histogram(lengths: Sequence[int]) -> list[int]:
    """How many lengths have as many binary digits as the index plus one: 1, 2-3, 4-7, 8-15 ... tokens."""
    counts = [0] * max((n.bit_length() for n in lengths), default=0)
    for length in lengths:
        counts[length.bit_length() - 1] += 1
    return counts


def _look(name: str, records: int | None, looked_at: int, samples: Sequence[Sample]) -> Look:
    return Look(
        name=name,
        records=records,
        looked_at=looked_at,
        too_long_or_short=looked_at - len(samples),
        prompts=tuple(sample.prompt_tokens for sample in samples),
        outputs=tuple(sample.output_tokens for sample in samples),
    )
