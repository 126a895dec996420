"""Compares curves with the published ones: the rate at a limit, and the ratios of such rates. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fgbench.metrics.crossing import Range, rate_at
from fgbench.reproduction.figures import PublishedPanel, published_name
from fgbench.reproduction.published import Curve

REFERENCE = ("fastgen", "proactive")
"""The systems whose rate is divided by the others', as in the paper; a panel has one of them."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """A figure of a panel, here and in the paper."""

    panel: str
    what: str
    """``fastgen at 0.3 s/token`` or ``fastgen / vllm``."""
    unit: str
    ours: Range | None
    """None: not measured."""
    published: Range | None
    """None: not published."""

    @property
    def factor(self) -> float | None:
        """Ours / published; None if either is not known exactly."""
        if self.ours is None or self.published is None:
            return None
        mine, theirs = self.ours.exact, self.published.exact
        return mine / theirs if mine and theirs else None

    def to_json(self) -> dict[str, object]:
        """Return the figure as a JSON object; bounds that are not known are null."""
        return {
            "panel": self.panel,
            "figure": self.what,
            "unit": self.unit,
            "here": _bounds(self.ours),
            "paper": _bounds(self.published),
            "factor": self.factor,
        }


def deviations(
    panel: PublishedPanel, ours: Mapping[str, Curve], published: Mapping[str, Curve]
) -> list[Deviation]:
    """Return the rates at the panel's limit, and FastGen's rate over each other system's.

    Args:
        ours: Curves by the label of the backend.
        published: Curves by the name of the system.

    """
    mine = {published_name(label): rate_at(curve, panel.limit) for label, curve in ours.items()}
    theirs = {system: rate_at(curve, panel.limit) for system, curve in published.items()}
    systems = list(dict.fromkeys([*theirs, *mine]))
    found = [
        Deviation(
            panel.name, f"{system} at {panel.limit:g} s/token", "/s", mine.get(system), theirs.get(system)
        )
        for system in systems
    ]
    for reference in REFERENCE:
        if reference in systems:
            found += [
                Deviation(
                    panel.name,
                    f"{reference} / {system}",
                    "x",
                    _ratio(mine.get(reference), mine.get(system)),
                    _ratio(theirs.get(reference), theirs.get(system)),
                )
                for system in systems
                if system != reference
            ]
    return found


def largest_first(found: Iterable[Deviation]) -> list[Deviation]:
    """Return the largest deviation first, up or down; those that are not known exactly come last."""

    def rank(one: Deviation) -> tuple[bool, float]:
        return one.factor is None, -abs(math.log(one.factor)) if one.factor is not None else 0.0

    return sorted(found, key=rank)


def _bounds(value: Range | None) -> list[float | None]:
    """Return the lower and the upper bound; None for a bound that is not known."""
    if value is None:
        return [None, None]
    return [value.low if value.low > 0.0 else None, value.high if math.isfinite(value.high) else None]


def _ratio(one: Range | None, other: Range | None) -> Range | None:
    return one.over(other) if one is not None and other is not None else None
