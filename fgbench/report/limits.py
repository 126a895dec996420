"""Limits that a comparison must not break, for continuous integration. Pure.

A limit says when to fail: ``p95 jct > 1.05`` (the ratio to the baseline), ``ttft > 500ms`` (the figure
itself), ``request_throughput < 0.95``. The default statistic is the mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fgbench.metrics.metric import METRICS
from fgbench.report.comparison import Comparison, ComparisonPoint
from fgbench.report.quantities import QUANTITIES, Quantity
from fgengine.units import times

EXAMPLE = "write one like 'p95 jct > 1.05' (the ratio to the baseline) or 'ttft > 500ms' (the figure itself)"
_LIMIT = re.compile(
    r"\s*(?:(?P<statistic>[a-z]+\d*)\s+)?(?P<metric>[a-z_]+)\s*(?P<sign>[<>])\s*"
    r"(?P<value>\d+\.?\d*|\.\d+)\s*(?P<unit>ms|s|x|%|)\s*",
    re.I,
)
_KEYS = {name: metric.key for metric in METRICS for name in (metric.key, *metric.aliases)}


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of one figure of each backend at each load."""

    text: str
    quantity: Quantity
    above: bool
    """Whether values above the limit break it; otherwise those below."""
    value: float
    is_ratio: bool
    """Whether the ratio to the baseline is limited; otherwise the figure itself, in its unit."""

    def broken_by(self, comparison: Comparison) -> Iterator[str]:
        """Yield a sentence for each backend and load that breaks the limit, or for which it is not known."""
        checked = False
        for level in comparison.levels:
            for point in comparison.at(level):
                if self.is_ratio and point.label == comparison.baseline:
                    continue
                checked = True
                where = comparison.axis.describe(level)
                value = self._limited(comparison, point)
                if isinstance(value, str):
                    yield f"{self.text} could not be checked for {point.label} at {where}: {value}"
                elif value > self.value if self.above else value < self.value:
                    shown = times(value) if self.is_ratio else self.quantity.show(value)
                    yield f"{self.text} is broken: {point.label} has {shown} at {where}"
        if not checked:
            yield f"{self.text} could not be checked: there is no other backend than the baseline"

    def _limited(self, comparison: Comparison, point: ComparisonPoint) -> float | str:
        """Return the limited number of a point, or the reason why there is none."""
        if not point.complete:
            return "the run is not complete"
        cell = comparison.cell(point, self.quantity)
        if cell is None:
            return f"it has no {self.quantity.name}"
        if not self.is_ratio:
            return cell.value
        base = next((one for one in comparison.at(point.level) if one.label == comparison.baseline), None)
        if base is None or not base.complete:
            return "the baseline has no complete run there"
        if cell.ratio is not None:
            return cell.ratio.value
        figure = comparison.cell(base, self.quantity)
        if cell.value == 0.0 and figure is not None and figure.value > 0.0:
            return 0.0
        return "there is no ratio to the baseline"


def parse_limit(text: str) -> Limit:
    """Parse a limit; raises ValueError if it is none, or names a figure that is not compared."""
    match = _LIMIT.fullmatch(text)
    if match is None:
        raise ValueError(f"--fail-if '{text}' is no limit: {EXAMPLE}")
    name, statistic, unit = match["metric"].lower(), match["statistic"], match["unit"].lower()
    known = {(quantity.metric, quantity.statistic): quantity for quantity in QUANTITIES}
    key = _KEYS.get(name)
    chosen = (statistic.lower(),) if statistic else (None, "mean")
    quantity = next((known[key or "", one] for one in chosen if (key or "", one) in known), None)
    if quantity is None:
        names = ", ".join(dict.fromkeys(one.metric for one in QUANTITIES))
        raise ValueError(
            f"--fail-if '{text}': this figure is not compared: use one of {names}, with mean, p50, p95 or p99"
        )
    if unit in ("s", "ms") and not quantity.is_time:
        raise ValueError(f"--fail-if '{text}': {quantity.name} is no time: leave out the unit")
    if unit == "%" and quantity.unit != "share":
        raise ValueError(f"--fail-if '{text}': {quantity.name} is no share: leave out the %")
    value = float(match["value"]) / {"ms": 1000.0, "%": 100.0}.get(unit, 1.0)
    is_ratio = unit == "x" or (unit == "" and quantity.better is not None)
    if is_ratio and quantity.better is None:
        raise ValueError(f"--fail-if '{text}': {quantity.name} gets no ratio to the baseline")
    return Limit(f"{text.strip()}", quantity, match["sign"] == ">", value, is_ratio)
