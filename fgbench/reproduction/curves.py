"""Makes the curves of a panel from the results of an experiment's points."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from statistics import fmean

from fgbench.metrics.slo import SLO, attainment
from fgbench.reproduction.published import Curve
from fgbench.results.run import read_run
from fgbench.sweeping.runner import Result


def latency_curves(results: Iterable[Result], statistic: str) -> dict[str, Curve]:
    """Return the latency per output token against the rate, by backend: means over seeds.

    Points without a valid run, or without the figure, are left out.
    """

    def figure(result: Result) -> float | None:
        assert result.summary is not None
        return result.summary.figure("normalized_latency", statistic)

    return _curves(results, figure)


def attainment_curves(results: Iterable[Result], slo: SLO) -> dict[str, Curve]:
    """Return the share of requests that meet ``slo`` against the rate, by backend: means over seeds."""

    def share(result: Result) -> float | None:
        return None if result.run is None else attainment(read_run(result.run).records, slo)

    return _curves(results, share)


def above_capacity(results: Iterable[Result]) -> dict[str, set[float]]:
    """Return the rates that were above capacity for any seed, by backend."""
    found: dict[str, set[float]] = defaultdict(set)
    for result in results:
        if result.summary is not None and result.summary.overloaded:
            found[result.point.backend].add(result.point.rate)
    return dict(found)


def _curves(results: Iterable[Result], of: Callable[[Result], float | None]) -> dict[str, Curve]:
    found: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        if result.exit.measured and result.summary is not None and (value := of(result)) is not None:
            found[result.point.backend][result.point.rate].append(value)
    return {
        label: [(rate, fmean(values)) for rate, values in sorted(points.items())]
        for label, points in found.items()
    }
