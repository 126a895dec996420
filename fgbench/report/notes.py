"""What stands above, beside and below the figures of a comparison: the same words in every format. Pure."""

from __future__ import annotations

from typing import NamedTuple

from fgbench.metrics.statistics import CONFIDENCE, MIN_SEEDS
from fgbench.report.comparison import Comparison, ComparisonPoint, not_judged
from fgbench.report.quantities import HEADLINES
from fgbench.report.run_tables import DISTURBED_MARK, DISTURBED_NOTE, OVERLOAD_MARK, OVERLOAD_NOTE

INCOMPLETE_MARK = "◌"
INCOMPLETE_NOTE = (
    f"{INCOMPLETE_MARK} not a complete run, and not in the pictures: requests that had not ended are "
    "missing, the slow ones above all."
)
REJECTED_NOTE = (
    "Some requests were rejected by a server with a full queue. They have no latency, so latencies of "
    "systems that rejected different shares are not of the same requests; goodput counts them as missed."
)
VERDICT_MARKS = {"better": "✔", "worse": "✘", "not distinguishable": "≈"}


class Note(NamedTuple):
    text: str
    warns: bool


def title(comparison: Comparison) -> str:
    seeds = comparison.seeds
    which = ", ".join(map(str, seeds[:8])) + (", ..." if len(seeds) > 8 else "")
    return f"{comparison.workload.describe()}, seed{'s' if len(seeds) > 1 else ''} {which}"


def marks(point: ComparisonPoint) -> str:
    overloaded = f" {OVERLOAD_MARK}" if point.overloaded else ""
    disturbed = f" {DISTURBED_MARK}" if point.disturbed else ""
    return overloaded + disturbed + ("" if point.complete else f" {INCOMPLETE_MARK}")


def seeds_paired(comparison: Comparison) -> list[int]:
    """With how many seeds each point stands beside the baseline."""
    ratios = [comparison.ratio(point, HEADLINES[0]) for point in comparison.points]
    return [ratio.seeds for ratio in ratios if ratio is not None]


def is_judged(comparison: Comparison) -> bool:
    """Whether there are seeds enough for a verdict anywhere."""
    return max(seeds_paired(comparison), default=0) >= MIN_SEEDS


def notes(comparison: Comparison) -> list[Note]:
    """What the marks mean, and what was not counted."""
    said = []
    if any(point.overloaded for point in comparison.points):
        said.append(Note(OVERLOAD_NOTE, True))
    if any(point.disturbed for point in comparison.points):
        said.append(Note(DISTURBED_NOTE, True))
    if any(entry.summary.rejected for point in comparison.points for entry in point.counted):
        said.append(Note(REJECTED_NOTE, True))
    if not all(point.complete for point in comparison.points):
        said.append(Note(INCOMPLETE_NOTE, True))
    if dropped := sum(len(point.entries) - len(point.counted) for point in comparison.points):
        runs = "1 run that is" if dropped == 1 else f"{dropped} runs that are"
        said.append(Note(f"Left out: {runs} not complete, beside complete ones of other seeds.", True))
    paired = seeds_paired(comparison)
    if is_judged(comparison):
        marks = ", ".join(f"{mark} {verdict}" for verdict, mark in VERDICT_MARKS.items())
        said.append(
            Note(
                f"{marks}: paired Student's t over seeds at {CONFIDENCE:.0%}, each on its own; "
                f"{CONFIDENCE:.0%} under a mean: bootstrap over seeds.",
                False,
            )
        )
    elif paired:
        said.append(
            Note(
                f"{not_judged(max(paired)).capitalize()}, so a difference may be chance; "
                f"{MIN_SEEDS} seeds or more give intervals and verdicts.",
                False,
            )
        )
    return said
