"""Title, marks and notes of a comparison. All formats use the same texts. Pure."""

from __future__ import annotations

from fgbench.metrics.statistics import CONFIDENCE, MIN_SEEDS
from fgbench.report.comparison import Comparison, ComparisonPoint, not_judged
from fgbench.report.marks import notes_on, signs
from fgbench.report.quantities import HEADLINES
from fgbench.report.unequal import Note, unequal

REJECTED_NOTE = (
    "Some requests were rejected because the server's queue was full. They have no latency, so do not "
    "compare latencies of backends that rejected different shares; goodput counts these requests as missed."
)
REPEATED_NOTE = (
    "The seeds sent the same requests at the same times, so there are no intervals and no verdicts: they "
    "would only show how steady the machine is. With --num-prompts below the length of a trace, each seed "
    "replays another window of it."
)
FAILED_NOTE = (
    "Some requests failed ({}). They have no latency, and those that were answered may be the easy ones, so "
    "do not compare their latencies; goodput counts failed requests as missed."
)
NATURAL_NOTE = (
    "The models ended their answers (--natural-lengths), so the output lengths are results too: a backend "
    "with shorter answers did less work. Compare JCT / token rather than JCT."
)
VERDICT_MARKS = {"better": "✔", "worse": "✘", "not distinguishable": "≈"}


def title(comparison: Comparison) -> str:
    """Return the title: the workload and the seeds."""
    seeds = comparison.seeds
    listed = ", ".join(map(str, seeds[:8])) + (", ..." if len(seeds) > 8 else "")
    return f"{comparison.workload.describe()}, seed{'s' if len(seeds) > 1 else ''} {listed}"


def marks(point: ComparisonPoint) -> str:
    """Return the marks after a point's name, such as ``" ▲"``; empty if it needs none."""
    return signs(point.marks)


def seeds_paired(comparison: Comparison) -> list[int]:
    """Return, for each point with a ratio to the baseline, the number of seeds that both have."""
    cells = [comparison.cell(point, HEADLINES[0]) for point in comparison.points]
    return [cell.ratio.seeds for cell in cells if cell is not None and cell.ratio is not None]


def is_judged(comparison: Comparison) -> bool:
    """Whether any point has enough seeds for a verdict."""
    return max(seeds_paired(comparison), default=0) >= MIN_SEEDS


def _failed(comparison: Comparison) -> str:
    """Return in words how many requests of each backend failed; empty if none did."""
    words = []
    for label in comparison.labels:
        summaries = [entry.summary for point in comparison.of(label) for entry in point.counted]
        if failed := sum(summary.failed for summary in summaries):
            words.append(f"{label}: {failed:,} of {sum(summary.requests for summary in summaries):,}")
    return ", ".join(words)


def notes(comparison: Comparison) -> list[Note]:
    """Return what the marks mean, which runs are left out, and what could not be made equal."""
    found = [Note(text, True) for text in notes_on(point.marks for point in comparison.points)]
    if any(entry.summary.rejected for point in comparison.points for entry in point.counted):
        found.append(Note(REJECTED_NOTE, True))
    if failed := _failed(comparison):
        found.append(Note(FAILED_NOTE.format(failed), True))
    if any(point.repeats_one_workload for point in comparison.points):
        found.append(Note(REPEATED_NOTE, True))
    if comparison.natural_lengths:
        found.append(Note(NATURAL_NOTE, True))
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
                f"{marks}: paired Student's t test over seeds at {CONFIDENCE:.0%}, corrected for the number "
                f"of verdicts on a figure (Benjamini and Hochberg). The {CONFIDENCE:.0%} interval under a "
                "mean is Student's, on logarithms, over seeds.",
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
