"""Runs on one workload side by side: under which labels, against which baseline, over which seeds. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgbench.metrics.accounts import Breakdown, MachineAccount, MemoryAccount
from fgbench.metrics.latency import slowdowns
from fgbench.metrics.metric import metric_called
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.statistics import Distribution, Estimate, PairedRatio, jain_index
from fgbench.metrics.summary import Summary
from fgbench.report.pairing import Axis, WorkloadKey, group, level_of, seed_of, settings_of
from fgbench.report.quantities import Quantity
from fgbench.results.run import Run, summary_of

if TYPE_CHECKING:
    from fgengine.cost import CostModel

DEFAULT_BASELINE = "fastgen-fcfs"


@dataclass(frozen=True, slots=True)
class Entry:
    """One run and its figures."""

    label: str
    level: float
    """On the comparison's axis."""
    seed: int
    run: Run
    summary: Summary
    breakdown: Breakdown | None
    """None: the server gave no account of its requests."""
    memory: MemoryAccount | None
    """None: the server gave no account of its KV memory."""
    machine: MachineAccount | None
    """None: run.json says nothing of the machine's other load."""
    slowdown: Distribution | None
    """None, as ``fairness``: no cost model of the model is at hand, or no request was answered."""
    fairness: float | None

    @property
    def settings(self) -> dict[str, Any]:
        return settings_of(self.run.info)

    @property
    def records(self) -> Sequence[RequestRecord]:
        """Those that the figures are of: of a trimmed run the ones in its window."""
        return _counted(self.run, self.summary)

    @classmethod
    def of(cls, run: Run, cost: CostModel | None = None) -> Entry:
        """Figures are computed from the records, so that all runs are measured by one definition."""
        workload = run.info.get("workload") or {}
        name = str((run.info.get("backend") or {}).get("name", "unknown"))
        summary = summary_of(run)
        slowed = slowdowns(_counted(run, summary), cost) if cost else []
        return cls(
            label=name,
            level=level_of(workload),
            seed=seed_of(run.info),
            run=run,
            summary=summary,
            breakdown=Breakdown.of(summary),
            memory=MemoryAccount.of(run.info),
            machine=MachineAccount.of(run.info),
            slowdown=Distribution.of(slowed),
            fairness=jain_index(slowed),
        )

    def figure(self, metric: str, statistic: str | None = None) -> float | None:
        """A plain figure of the run, or one ``statistic`` of a distribution; None where it has none."""
        return metric_called(metric).figure(self, statistic)


@dataclass(frozen=True)
class ComparisonPoint:
    """A backend under one load: a run of each seed."""

    label: str
    level: float
    """On the comparison's axis."""
    entries: tuple[Entry, ...]
    """By seed."""

    @cached_property
    def counted(self) -> tuple[Entry, ...]:
        """Those that the figures are of: the complete ones, or all where none is."""
        return tuple(entry for entry in self.entries if entry.run.complete) or self.entries

    @property
    def complete(self) -> bool:
        return self.counted[0].run.complete

    @property
    def seeds(self) -> list[int]:
        return [entry.seed for entry in self.counted]

    @property
    def overloaded(self) -> bool:
        """With any of its seeds."""
        return any(entry.summary.overloaded for entry in self.counted)

    @property
    def disturbed(self) -> bool:
        """By other programs, with any of its seeds."""
        return any(entry.machine is not None and entry.machine.busy for entry in self.counted)

    def values(self, metric: str, statistic: str | None = None) -> dict[int, float]:
        """By seed."""
        found = {entry.seed: entry.figure(metric, statistic) for entry in self.counted}
        return {seed: value for seed, value in found.items() if value is not None}

    def estimate(self, metric: str, statistic: str | None = None) -> Estimate | None:
        """The mean over seeds; None where no run has the figure."""
        return Estimate.of(list(self.values(metric, statistic).values()))

    def figure(self, metric: str, statistic: str | None = None) -> float | None:
        estimate = self.estimate(metric, statistic)
        return None if estimate is None else estimate.value


@dataclass(frozen=True)
class Comparison:
    """Runs on one workload."""

    workload: WorkloadKey
    points: tuple[ComparisonPoint, ...]
    baseline: str
    """Label of the points that the others are divided by, level by level."""
    _at: dict[tuple[str, float], ComparisonPoint] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_at", {(point.label, point.level): point for point in self.points})

    @cached_property
    def levels(self) -> list[float]:
        return sorted({point.level for point in self.points})

    @cached_property
    def labels(self) -> list[str]:
        """The baseline last, so that what is new is read first."""
        names = {point.label for point in self.points}
        return sorted(names, key=lambda name: (name == self.baseline, name))

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({entry.seed for point in self.points for entry in point.entries})

    @property
    def runs(self) -> int:
        return sum(len(point.entries) for point in self.points)

    @property
    def axis(self) -> Axis:
        """What the levels are of."""
        return self.workload.axis

    def at(self, level: float) -> list[ComparisonPoint]:
        return [point for label in self.labels if (point := self._at.get((label, level))) is not None]

    def of(self, label: str) -> list[ComparisonPoint]:
        """By level."""
        return [point for level in self.levels if (point := self._at.get((label, level))) is not None]

    def ratio(self, point: ComparisonPoint, quantity: Quantity) -> PairedRatio | None:
        """``point``'s figure over the baseline's at its level, seed by seed; None where there is none."""
        base = self._at.get((self.baseline, point.level))
        if base is None or base is point or quantity.better is None:
            return None
        return PairedRatio.of(
            point.values(quantity.metric, quantity.statistic),
            base.values(quantity.metric, quantity.statistic),
        )

    def verdict(self, point: ComparisonPoint, quantity: Quantity) -> str | None:
        """``better``, ``worse`` or ``not distinguishable`` from the baseline, or why it was not judged; None
        where there is nothing to judge."""
        ratio = self.ratio(point, quantity)
        if ratio is None:
            return None
        if not (point.complete and self._at[self.baseline, point.level].complete):
            return "incomplete: not judged"
        return ratio.verdict(lower_is_better=quantity.lower_is_better) or not_judged(ratio.seeds)


def _counted(run: Run, summary: Summary) -> Sequence[RequestRecord]:
    if summary.window is None:
        return run.records
    first, last = summary.window
    return [record for record in run.records if first <= record.scheduled <= last]


def not_judged(seeds: int) -> str:
    return f"{'one seed' if seeds == 1 else f'{seeds} seeds'}: not judged"


def compare(
    runs: Sequence[Run],
    baseline: str | None = None,
    cost_of: Callable[[str], CostModel | None] = lambda model: None,
) -> list[Comparison]:
    """Group runs by workload, most runs first.

    Args:
        runs: Oldest first.
        baseline: A backend's name or a run folder; None: ``fastgen-fcfs`` where it is among them, else the
            first run's label.
        cost_of: The cost model of a model, for slowdowns; None where there is none.

    Raises:
        ValueError: ``baseline`` is none of the runs.
    """
    comparisons = []
    found = False
    for each in group(runs):
        entries = _label([Entry.of(run, cost_of(each.workload.model)) for run in each.runs])
        chosen = _find_baseline(entries, baseline)
        found = found or chosen is not None
        comparisons.append(Comparison(each.workload, _points(entries), chosen or _default_baseline(entries)))
    if baseline is not None and not found:
        names = sorted({point.label for comparison in comparisons for point in comparison.points})
        raise ValueError(f"no run is called {baseline}; choose the baseline among {', '.join(names)}")
    return sorted(comparisons, key=lambda comparison: -comparison.runs)


def _points(entries: Sequence[Entry]) -> tuple[ComparisonPoint, ...]:
    by_point: dict[tuple[str, float], list[Entry]] = defaultdict(list)
    for entry in entries:
        by_point[entry.label, entry.level].append(entry)
    return tuple(
        ComparisonPoint(label, level, tuple(sorted(some, key=lambda entry: entry.seed)))
        for (label, level), some in by_point.items()
    )


def _label(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Backends by name; those of one name with other settings also by the settings that differ; runs that
    are still alike are numbered."""
    by_name: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_name[entry.label].append(entry)
    seen: dict[tuple[str, float, int], int] = defaultdict(int)
    labelled = []
    for entry in entries:
        alike = by_name[entry.label]
        keys = sorted({key for other in alike for key in other.settings})
        differing = [key for key in keys if len({repr(other.settings.get(key)) for other in alike}) > 1]
        label = entry.label
        if differing:
            label += " (" + ", ".join(f"{key} {entry.settings.get(key)}" for key in differing) + ")"
        seen[label, entry.level, entry.seed] += 1
        repeat = seen[label, entry.level, entry.seed]
        labelled.append(replace(entry, label=label if repeat == 1 else f"{label} #{repeat}"))
    return tuple(labelled)


def _find_baseline(entries: Sequence[Entry], baseline: str | None) -> str | None:
    if baseline is None:
        return None
    folder = Path(baseline).resolve()
    for entry in entries:
        name = (entry.run.info.get("backend") or {}).get("name")
        if baseline in (entry.label, name) or entry.run.path.resolve() == folder:
            return entry.label
    return None


def _default_baseline(entries: Sequence[Entry]) -> str:
    return next((e.label for e in entries if e.label.startswith(DEFAULT_BASELINE)), entries[0].label)
