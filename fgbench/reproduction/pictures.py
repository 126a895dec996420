"""Makes the pictures of a reproduced figure: our curves over the published ones. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fgbench.report.objectives import TARGET
from fgbench.report.pictures.picture import Line, Panel, Picture, is_wide
from fgbench.reproduction.figures import AttainmentPanel, PublishedPanel, published_name
from fgbench.reproduction.published import Curve

RATE = "requests / s"


def latency_picture(
    panel: PublishedPanel,
    ours: Mapping[str, Curve],
    published: Mapping[str, Curve],
    overloaded: Mapping[str, set[float]],
    notes: Sequence[str],
) -> Picture:
    """Return the picture of a panel: solid lines with markers are ours, dashed lines are the paper's.

    Args:
        ours: Curves by the label of the backend.
        published: Curves by the name of the system.
        overloaded: Rates above capacity by label; their points are hollow.
        notes: Texts after the title.
    """
    systems = list(dict.fromkeys([*map(published_name, ours), *published]))
    lines = [
        Line(
            label,
            systems.index(published_name(label)),
            [rate for rate, _ in curve],
            [value for _, value in curve],
            hollow=[rate in overloaded.get(label, set()) for rate, _ in curve],
        )
        for label, curve in ours.items()
    ]
    lines += [
        Line(
            f"{system}, published",
            systems.index(system),
            [rate for rate, _ in curve],
            [value for _, value in curve],
            marked=False,
            reference=True,
        )
        for system, curve in published.items()
    ]
    drawn = Panel(
        f"{panel.statistic} latency / output token (s)",
        RATE,
        "",
        lines,
        level=panel.limit,
        x_ticks=sorted({x for line in lines if not line.reference for x in line.xs}),
    )
    drawn = replace(drawn, y_log=is_wide(drawn.y_range))
    return Picture(panel.name, panel.title, [drawn], 1, systems, f"{panel.limit:g} s/token", notes)


def attainment_picture(
    panel: AttainmentPanel, curves: Sequence[Mapping[str, Curve]], notes: Sequence[str]
) -> Picture:
    """Return the picture of SLO attainment with a panel for each SLO; ``curves`` has one entry for each."""
    labels = list(dict.fromkeys(label for each in curves for label in each))
    panels = [
        Panel(
            slo.replace(",", ", "),
            RATE,
            "requests within the SLO" if slo == panel.slos[0] else "",
            [
                Line(label, labels.index(label), [rate for rate, _ in curve], [share for _, share in curve])
                for label, curve in each.items()
            ],
            level=TARGET,
            x_ticks=sorted({rate for curve in each.values() for rate, _ in curve}),
            y_percent=True,
        )
        for slo, each in zip(panel.slos, curves, strict=True)
    ]
    return Picture(
        panel.name, panel.title, panels, len(panels), labels, f"{TARGET:.0%} of the requests", notes
    )
