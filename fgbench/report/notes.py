"""Title, marks and notes of a comparison. All formats use the same texts. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from fgbench.metrics.statistics import CONFIDENCE, MIN_SEEDS
from fgbench.report.comparison import Comparison, ComparisonPoint, not_judged
from fgbench.report.quantities import HEADLINES
from fgbench.report.run_tables import (
    ANALYTIC_MARK,
    CACHED_MARK,
    CACHED_NOTE,
    DISTURBED_MARK,
    DISTURBED_NOTE,
    OVERLOAD_MARK,
    OVERLOAD_NOTE,
    analytic_note,
)
from fgbench.report.unequal import Note, unequal

INCOMPLETE_MARK = "◌"
INCOMPLETE_NOTE = (
    f"{INCOMPLETE_MARK} not a complete run: requests that had not ended are missing, mostly slow ones, so "
    "latencies look too low. The pictures leave this run out. Run it again to compare it."
)
REJECTED_NOTE = (
    "Some requests were rejected because the server's queue was full. They have no latency, so do not "
    "compare latencies of backends that rejected different shares; goodput counts these requests as missed."
)
VERDICT_MARKS = {"better": "✔", "worse": "✘", "not distinguishable": "≈"}


def title(comparison: Comparison) -> str:
    """Return the title: the workload and the seeds."""
    seeds = comparison.seeds
    listed = ", ".join(map(str, seeds[:8])) + (", ..." if len(seeds) > 8 else "")
    return f"{comparison.workload.describe()}, seed{'s' if len(seeds) > 1 else ''} {listed}"


def marks(point: ComparisonPoint) -> str:
    """Return the marks after a point's name, such as ``" ▲"``; empty if it needs none."""
    overloaded = f" {OVERLOAD_MARK}" if point.overloaded else ""
    disturbed = f" {DISTURBED_MARK}" if point.disturbed else ""
    cached = f" {CACHED_MARK}" if point.cached else ""
    analytic = f" {ANALYTIC_MARK}" if point.analytic_device else ""
    return overloaded + disturbed + cached + analytic + ("" if point.complete else f" {INCOMPLETE_MARK}")


def analytic_devices(points: Iterable[ComparisonPoint]) -> list[str]:
    """Return the names of the points' analytic devices, sorted."""
    return sorted({point.analytic_device for point in points if point.analytic_device})


def seeds_paired(comparison: Comparison) -> list[int]:
    """Return, for each point with a ratio to the baseline, the number of seeds that both have."""
    cells = [comparison.cell(point, HEADLINES[0]) for point in comparison.points]
    return [cell.ratio.seeds for cell in cells if cell is not None and cell.ratio is not None]


def is_judged(comparison: Comparison) -> bool:
    """Whether any point has enough seeds for a verdict."""
    return max(seeds_paired(comparison), default=0) >= MIN_SEEDS


def notes(comparison: Comparison) -> list[Note]:
    """Return what the marks mean, which runs are left out, and what could not be made equal."""
    found = []
    if any(point.overloaded for point in comparison.points):
        found.append(Note(OVERLOAD_NOTE, True))
    if any(point.disturbed for point in comparison.points):
        found.append(Note(DISTURBED_NOTE, True))
    if any(point.cached for point in comparison.points):
        found.append(Note(CACHED_NOTE, True))
    if devices := analytic_devices(comparison.points):
        found.append(Note(analytic_note(", ".join(devices)), True))
    if any(entry.summary.rejected for point in comparison.points for entry in point.counted):
        found.append(Note(REJECTED_NOTE, True))
    if not all(point.complete for point in comparison.points):
        found.append(Note(INCOMPLETE_NOTE, True))
    if dropped := sum(len(point.entries) - len(point.counted) for point in comparison.points):
        runs = "1 run that is" if dropped == 1 else f"{dropped} runs that are"
        found.append(Note(f"Left out: {runs} not complete; other seeds have complete runs.", True))
    found += unequal(
        {
            label: [entry.run.info for point in comparison.of(label) for entry in point.counted]
            for label in comparison.labels
        }
    )
    paired = seeds_paired(comparison)
    if is_judged(comparison):
        marks = ", ".join(f"{mark} {verdict}" for verdict, mark in VERDICT_MARKS.items())
        found.append(
            Note(
                f"{marks}: paired Student's t test over seeds at {CONFIDENCE:.0%}, not corrected for "
                f"multiple tests. The {CONFIDENCE:.0%} interval under a mean is a bootstrap over seeds.",
                False,
            )
        )
    elif paired:
        found.append(
            Note(
                f"{not_judged(max(paired)).capitalize()}, so a difference may be chance. Run {MIN_SEEDS} "
                "seeds or more to get intervals and verdicts.",
                False,
            )
        )
    return found
