"""The figures that a comparison shows, derived from the table of metrics. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fgbench.metrics.metric import METRICS, Section, Unit
from fgengine.units import number, percent, seconds, size


@dataclass(frozen=True, slots=True)
class Quantity:
    """One statistic of one metric."""

    metric: str
    statistic: str | None
    """None: the metric is one number per run, not a distribution."""
    name: str
    unit: Unit
    better: Literal["lower", "higher"] | None
    """Which values are better. None: neither, so it gets no ratio and no verdict."""

    @property
    def is_time(self) -> bool:
        """Whether the unit is seconds, or seconds per token."""
        return self.unit in ("s", "s/token")

    @property
    def lower_is_better(self) -> bool:
        """Whether lower values are better."""
        return self.better == "lower"

    def show(self, value: float | None) -> str:
        """Return a value as text with its unit; ``-`` for None."""
        if self.is_time:
            return seconds(value)
        if self.unit == "bytes":
            return "-" if value is None else size(value)
        if self.unit == "share":
            return percent(value)
        return number(value)


def _compared(section: Section) -> tuple[Quantity, ...]:
    return tuple(
        Quantity(metric.key, statistic, metric.label, metric.unit, metric.better)
        for metric in METRICS
        if metric.section == section
        for statistic in metric.compared
    )


LATENCIES = _compared("latency")
THROUGHPUTS = _compared("throughput")
OUTCOMES = _compared("outcome")
SLOWDOWNS = _compared("fairness")
IN_THE_SERVER = _compared("server")
QUANTITIES = (*LATENCIES, *THROUGHPUTS, *OUTCOMES, *SLOWDOWNS, *IN_THE_SERVER)
OUTPUT_LENGTH = "output_length"
"""The metric that is a result only if models end their answers."""


def outcomes(*, natural_lengths: bool) -> tuple[Quantity, ...]:
    """Return the outcomes to show. Output lengths are one only if models end their answers."""
    return tuple(q for q in OUTCOMES if natural_lengths or q.metric != OUTPUT_LENGTH)


HEADLINES = tuple(quantity for quantity in LATENCIES if quantity.statistic == "mean") + THROUGHPUTS
"""Quantities that get a verdict in the tables. Files contain a verdict for every quantity with ``better``."""


def quantity_called(metric: str, statistic: str | None) -> Quantity:
    """Return one of ``QUANTITIES``. Raises KeyError if it is not compared."""
    return _BY_NAME[metric, statistic]


_BY_NAME = {(quantity.metric, quantity.statistic): quantity for quantity in QUANTITIES}
