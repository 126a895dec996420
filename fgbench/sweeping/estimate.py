"""How long a sweep takes, before and while it runs. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fgengine.units import clock

if TYPE_CHECKING:
    from rich.console import RenderableType

import math
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fgbench.spec.load import Load
    from fgbench.workload.datasets import Dataset
    from fgengine.cost import CostModel

SAMPLED = 400
"""Lengths that a capacity is predicted from."""


def sampled_lengths(dataset: Dataset, seed: int) -> list[tuple[int, int]]:
    """Prompt and output tokens of some requests."""
    from numpy.random import default_rng

    samples = islice(dataset.samples(default_rng(seed)), SAMPLED)
    return [(sample.prompt_tokens, sample.output_tokens) for sample in samples]


def capacity(cost: CostModel, lengths: Sequence[tuple[int, int]], batch_size: int) -> float:
    """Requests per second with full batches, as a profile predicts."""
    shares = [cost.share_seconds(prompt, output, batch_size) for prompt, output in lengths]
    return len(shares) / sum(shares)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Requests per second of a backend, as a profile predicts."""

    cost: CostModel
    lengths: Sequence[tuple[int, int]]
    """Prompt and output tokens."""
    batch_size: int

    def at(self, concurrency: int | None = None) -> float:
        """With full batches, or with so many requests in flight where these are fewer."""
        return capacity(self.cost, self.lengths, min(self.batch_size, concurrency or self.batch_size))


def load_seconds(load: Load, capacity: float | None) -> float | None:
    """As long as the requests need to arrive, or to be served where that is known and takes longer; None
    where neither is known. A closed loop ends with its duration, however many requests are left."""
    num_prompts = min(float(load.num_prompts), load.rate * load.duration)
    rate = min(load.rate, capacity or load.rate)
    seconds = num_prompts / rate if math.isfinite(rate) else None
    if load.arrivals.concurrency is None or math.isinf(load.duration):
        return seconds
    return load.duration if seconds is None else min(seconds, load.duration)


@dataclass
class Pace:
    """Compares the seconds that points took with the seconds expected, and corrects later estimates by it."""

    _expected: float = 0.0
    _taken: float = 0.0
    _unestimated: list[float] = field(default_factory=list)

    def took(self, seconds: float, expected: float | None) -> None:
        """A point took ``seconds``. ``expected``: None where there was no estimate, as for a simulation."""
        if expected is None:
            self._unestimated.append(seconds)
        else:
            self._expected += expected
            self._taken += seconds

    def left(self, expected: Sequence[float | None]) -> float | None:
        """Seconds for points that are expected to take so long; None where there is no estimate yet."""
        known = [seconds for seconds in expected if seconds is not None]
        unestimated = len(expected) - len(known)
        if unestimated and not self._unestimated:
            return None
        slower = self._taken / self._expected if self._expected > 0.0 else 1.0
        return sum(known) * slower + (
            unestimated * sum(self._unestimated) / len(self._unestimated) if unestimated else 0.0
        )


class SweepProgress:
    """Progress of a whole sweep: points report when they begin and end."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._pace = Pace()
        self._began = self._point_began = now()
        self._expected: float | None = None
        self._left: float | None = None
        self._place = self._title = ""
        self._share = 0.0

    def begin(
        self, place: str, title: str, share: float, expected: float | None, after: Sequence[float | None]
    ) -> None:
        """A point begins.

        Args:
            place: Such as ``point 3 of 12``.
            title: What it measures.
            share: Of the sweep that is done, 0 to 1.
            expected: Seconds it will take; None where there is no estimate.
            after: The same for the points after it.
        """
        self._place, self._title, self._share = place, title, share
        self._point_began = self._now()
        self._expected = expected
        self._left = self._pace.left([expected, *after])

    def end(self) -> float:
        """Seconds the point took."""
        seconds = self._now() - self._point_began
        self._pace.took(seconds, self._expected)
        return seconds

    def line(self) -> str:
        """``point 3 of 12: fastgen, 1.5/s, seed 0; 2:05 gone, about 12:30 left``."""
        return f"{self._place}: {self._title}; {self._times()}"

    def header(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text(self._place, style="bold"),
            ProgressBar(total=1.0, completed=self._share, width=40),
            Text(self._times()),
        )
        return row

    def _times(self) -> str:
        gone = f"{clock(self._now() - self._began)} gone"
        if self._left is None:
            return gone
        return f"{gone}, about {clock(max(0.0, self._left - (self._now() - self._point_began)))} left"
