"""Estimates how long a sweep takes, before and while it runs. Pure."""

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
"""Number of requests sampled to predict a capacity."""


def sampled_lengths(dataset: Dataset, seed: int) -> list[tuple[int, int]]:
    """Return prompt and output tokens of ``SAMPLED`` requests."""
    from numpy.random import default_rng

    samples = islice(dataset.samples(default_rng(seed)), SAMPLED)
    return [(sample.prompt_tokens, sample.output_tokens) for sample in samples]


def capacity(cost: CostModel, lengths: Sequence[tuple[int, int]], batch_size: int) -> float:
    """Return the requests per second with full batches, predicted by a cost model."""
    shares = [cost.share_seconds(prompt, output, batch_size) for prompt, output in lengths]
    return len(shares) / sum(shares)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Predicts the capacity of a backend with the cost model of a profile."""

    cost: CostModel
    lengths: Sequence[tuple[int, int]]
    """Prompt and output tokens of sampled requests."""
    batch_size: int

    def at(self, concurrency: int | None = None) -> float:
        """Return the requests per second with full batches.

        If ``concurrency`` is smaller than the batch size, batches have that number of requests.
        """
        return capacity(self.cost, self.lengths, min(self.batch_size, concurrency or self.batch_size))


def load_seconds(load: Load, capacity: float | None) -> float | None:
    """Return the estimated seconds of a load, or None if unknown.

    It is the time in which the requests arrive, or the time to serve them if that is known and longer. A
    closed loop ends after ``load.duration``, even if requests are left.
    """
    num_prompts = min(float(load.num_prompts), load.rate * load.duration)
    rate = min(load.rate, capacity or load.rate)
    seconds = num_prompts / rate if math.isfinite(rate) else None
    if load.arrivals.concurrency is None or math.isinf(load.duration):
        return seconds
    return load.duration if seconds is None else min(seconds, load.duration)


@dataclass
class Pace:
    """Corrects estimates by the ratio of actual to estimated seconds so far."""

    _expected: float = 0.0
    _actual: float = 0.0
    _unestimated: list[float] = field(default_factory=list)

    def took(self, seconds: float, expected: float | None) -> None:
        """Record that a point took ``seconds``. ``expected`` is the estimate; None if there was none."""
        if expected is None:
            self._unestimated.append(seconds)
        else:
            self._expected += expected
            self._actual += seconds

    def left(self, expected: Sequence[float | None]) -> float | None:
        """Return the corrected sum of the estimates ``expected``; None if unknown.

        Points without an estimate are assumed to take as long as the mean of earlier ones.
        """
        known = [seconds for seconds in expected if seconds is not None]
        unestimated = len(expected) - len(known)
        if unestimated and not self._unestimated:
            return None
        slowdown = self._actual / self._expected if self._expected > 0.0 else 1.0
        return sum(known) * slowdown + (
            unestimated * sum(self._unestimated) / len(self._unestimated) if unestimated else 0.0
        )


class SweepProgress:
    """Progress of a sweep, for a line of text and for the header of the live panel."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._pace = Pace()
        self._start = self._point_start = now()
        self._expected: float | None = None
        self._left: float | None = None
        self._place = self._title = ""
        self._share = 0.0

    def begin(
        self, place: str, title: str, share: float, expected: float | None, after: Sequence[float | None]
    ) -> None:
        """Record that a point begins.

        Args:
            place: Position in the sweep, such as ``point 3 of 12``.
            title: What the point measures.
            share: Share of the sweep that is done, 0 to 1.
            expected: Estimated seconds of the point; None if there is no estimate.
            after: Estimated seconds of the points after it.
        """
        self._place, self._title, self._share = place, title, share
        self._point_start = self._now()
        self._expected = expected
        self._left = self._pace.left([expected, *after])

    def end(self) -> float:
        """Record that the point ended; return the seconds it took."""
        seconds = self._now() - self._point_start
        self._pace.took(seconds, self._expected)
        return seconds

    def line(self) -> str:
        """Return ``point 3 of 12: fastgen, 1.5/s, seed 0; 2:05 elapsed, about 12:30 left``."""
        return f"{self._place}: {self._title}; {self._times()}"

    def header(self) -> RenderableType:
        """Return a row with the position, a progress bar and the times."""
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
        elapsed = f"{clock(self._now() - self._start)} elapsed"
        if self._left is None:
            return elapsed
        return f"{elapsed}, about {clock(max(0.0, self._left - (self._now() - self._point_start)))} left"
