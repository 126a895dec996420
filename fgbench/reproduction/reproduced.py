"""A reproduced figure: its deviations from the paper and its pictures, from the results of experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fgbench.metrics.slo import parse_slo
from fgbench.report.marks import ANALYTIC
from fgbench.report.pictures.picture import Picture
from fgbench.reproduction.curves import above_capacity, attainment_curves, latency_curves
from fgbench.reproduction.deviations import Deviation, deviations
from fgbench.reproduction.figures import FIGURES, Figure, PublishedPanel, Scale
from fgbench.reproduction.pictures import attainment_picture, latency_picture
from fgbench.reproduction.published import Curve, published_curves
from fgbench.sweeping.runner import Result


@dataclass(slots=True)
class Reproduced:
    """What can be reported about a figure of the paper."""

    name: str
    figure: Figure
    deviations: list[Deviation] = field(default_factory=list)
    attained: dict[str, dict[str, dict[str, Curve]]] = field(default_factory=dict)
    """By panel and SLO: the share of requests that meet it against the rate, by backend."""
    pictures: list[Picture] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    """Labels of the measured backends."""
    devices: set[str] = field(default_factory=set)
    """Devices whose step times were computed from published figures."""


def reproduced(name: str, measured: Mapping[str, Sequence[Result]], scale: Scale) -> Reproduced:
    """Return a figure's report. Panels whose experiment was not measured are left out.

    Args:
        name: Such as ``fig11``.
        measured: Results by experiment.
        scale: The scale of the experiments, for the titles of the pictures.
    """
    found = Reproduced(name, FIGURES[name])
    for panel in found.figure.panels:
        results = measured.get(panel.experiment)
        if results is None:
            continue
        found.labels |= {result.point.backend for result in results}
        devices = {result.analytic_device for result in results if result.analytic_device}
        found.devices |= devices
        notes = [scale, *(f"{ANALYTIC.sign} {device}" for device in sorted(devices))]
        if isinstance(panel, PublishedPanel):
            ours, published = latency_curves(results, panel.statistic), published_curves()[panel.name]
            found.deviations += deviations(panel, ours, published)
            found.pictures.append(
                latency_picture(
                    panel, ours, published, above_capacity(results), [*notes, "dashed: published"]
                )
            )
        else:
            curves = [attainment_curves(results, parse_slo(slo)) for slo in panel.slos]
            found.attained[panel.name] = dict(zip(panel.slos, curves, strict=True))
            found.pictures.append(attainment_picture(panel, curves, notes))
    return found
