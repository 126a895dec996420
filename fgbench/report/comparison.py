"""Groups runs of one workload into a comparison: labels, baseline, points over seeds, ratios, verdicts.
Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgbench.metrics.accounts import Breakdown, MachineAccount, MemoryAccount, analytic_device
from fgbench.metrics.conditions import CacheAccount
from fgbench.metrics.latency import slowdowns
from fgbench.metrics.metric import metric_called
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.statistics import Distribution, Estimate, Interval, PairedRatio, jain_index
from fgbench.metrics.summary import Summary
from fgbench.report.pairing import Axis, WorkloadKey, group, level_of, seed_of, settings_of
from fgbench.report.quantities import QUANTITIES, Quantity
from fgbench.results.run import Run, summary_of

if TYPE_CHECKING:
    from fgengine.cost import CostModel

DEFAULT_BASELINE = "fastgen-fcfs"


@dataclass(frozen=True, slots=True)
class Entry:
    """One run and its figures."""

    label: str
    level: float
    """Position on the comparison's axis: requests per second, or requests in flight."""
    seed: int
    run: Run
    summary: Summary
    breakdown: Breakdown | None
    """None if the server does not report where its requests spent their time."""
    memory: MemoryAccount | None
    """None if the server does not report its KV memory."""
    machine: MachineAccount | None
    """None if run.json does not contain the machine's other load."""
    cache: CacheAccount | None
    """None if the server has no prefix cache, or if that is not known."""
    slowdown: Distribution | None
    """None if no cost model of the model is available, or no request was answered."""
    fairness: float | None
    """None if ``slowdown`` is None."""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the run's backend."""
        return settings_of(self.run.info)

    @property
    def records(self) -> Sequence[RequestRecord]:
        """The records that count: if the run is trimmed, only those in its window."""
        return _counted(self.run, self.summary)

    @classmethod
    def of(cls, run: Run, cost: CostModel | None = None) -> Entry:
        """Compute the figures from the records, so that the definitions are the same for all runs."""
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
            cache=CacheAccount.of(run.info),
            slowdown=Distribution.of(slowed),
            fairness=jain_index(slowed),
        )

    def figure(self, metric: str, statistic: str | None = None) -> float | None:
        """Return a figure of the run, or one ``statistic`` of a distribution; None if there is none."""
        return metric_called(metric).figure(self, statistic)


@dataclass(frozen=True)
class ComparisonPoint:
    """A backend under one load, with one run per seed."""

    label: str
    level: float
    """Position on the comparison's axis: requests per second, or requests in flight."""
    entries: tuple[Entry, ...]
    """The runs, sorted by seed."""

    @cached_property
    def counted(self) -> tuple[Entry, ...]:
        """The entries that count: the complete runs, or all if no run is complete."""
        return tuple(entry for entry in self.entries if entry.run.complete) or self.entries

    @property
    def complete(self) -> bool:
        """Whether the figures are those of complete runs."""
        return self.counted[0].run.complete

    @property
    def seeds(self) -> list[int]:
        """The seeds that count."""
        return [entry.seed for entry in self.counted]

    @property
    def overloaded(self) -> bool:
        """Whether the run of any seed was overloaded."""
        return any(entry.summary.overloaded for entry in self.counted)

    @property
    def disturbed(self) -> bool:
        """Whether other programs disturbed the run of any seed."""
        return any(entry.machine is not None and entry.machine.busy for entry in self.counted)

    @property
    def cached(self) -> bool:
        """Whether a prefix cache from an earlier load helped the run of any seed."""
        return any(entry.cache is not None and entry.cache.helped for entry in self.counted)

    @property
    def analytic_device(self) -> str | None:
        """Name of the analytic device of any seed's run; None if all step times were measured."""
        return next((name for entry in self.counted if (name := analytic_device(entry.run.info))), None)

    def values(self, metric: str, statistic: str | None = None) -> dict[int, float]:
        """Return the figure of each seed that has it."""
        figures = {entry.seed: entry.figure(metric, statistic) for entry in self.counted}
        return {seed: value for seed, value in figures.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of one backend under one load, next to the baseline's: a row of the DataFrame.

    Tables, JSON, CSV, Markdown and pictures are made from these.
    """

    quantity: Quantity
    value: float
    """The mean over seeds."""
    interval: Interval | None
    """Of ``value``; None with too few seeds."""
    ratio: PairedRatio | None
    """To the baseline under the same load; None for the baseline itself, and if nothing is compared."""
    verdict: str | None
    """``better``, ``worse`` or ``not distinguishable``, or the reason why there is no verdict; None without a
    ratio."""


@dataclass(frozen=True)
class Comparison:
    """All runs of one workload, as points."""

    workload: WorkloadKey
    points: tuple[ComparisonPoint, ...]
    baseline: str
    """Label of the backend that the others are compared with, at the same level."""
    _at: dict[tuple[str, float], ComparisonPoint] = field(init=False, repr=False, compare=False)
    _cells: dict[tuple[str, float, Quantity], Cell | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "_at", {(point.label, point.level): point for point in self.points})

    @cached_property
    def levels(self) -> list[float]:
        """All levels, in ascending order."""
        return sorted({point.level for point in self.points})

    @cached_property
    def labels(self) -> list[str]:
        """All labels, with the baseline last, so that readers see new backends first."""
        names = {point.label for point in self.points}
        return sorted(names, key=lambda name: (name == self.baseline, name))

    @cached_property
    def seeds(self) -> list[int]:
        """All seeds, in ascending order."""
        return sorted({entry.seed for point in self.points for entry in point.entries})

    @property
    def runs(self) -> int:
        """Number of runs."""
        return sum(len(point.entries) for point in self.points)

    @property
    def axis(self) -> Axis:
        """What levels measure: rate or concurrency."""
        return self.workload.axis

    def at(self, level: float) -> list[ComparisonPoint]:
        """Return the points at one level, in the order of ``labels``."""
        return [point for label in self.labels if (point := self._at.get((label, level))) is not None]

    def of(self, label: str) -> list[ComparisonPoint]:
        """Return the points of one backend, in the order of ``levels``."""
        return [point for level in self.levels if (point := self._at.get((label, level))) is not None]

    def cell(self, point: ComparisonPoint, quantity: Quantity) -> Cell | None:
        """Return one figure of the point with its ratio and verdict; None if no run of the point has it."""
        key = point.label, point.level, quantity
        if key not in self._cells:
            self._cells[key] = self._cell(point, quantity)
        return self._cells[key]

    def cells(self, point: ComparisonPoint) -> list[Cell]:
        """Return all figures that the point has, in the order of ``QUANTITIES``."""
        return [cell for quantity in QUANTITIES if (cell := self.cell(point, quantity)) is not None]

    def _cell(self, point: ComparisonPoint, quantity: Quantity) -> Cell | None:
        estimate = Estimate.of(list(point.values(quantity.metric, quantity.statistic).values()))
        if estimate is None:
            return None
        ratio = self._ratio(point, quantity)
        verdict = None if ratio is None else self._verdict(point, quantity, ratio)
        return Cell(quantity, estimate.value, estimate.interval, ratio, verdict)

    def _ratio(self, point: ComparisonPoint, quantity: Quantity) -> PairedRatio | None:
        """Return the point's figure over the baseline's at the same level, paired by seed."""
        base = self._at.get((self.baseline, point.level))
        if base is None or base is point or quantity.better is None:
            return None
        return PairedRatio.of(
            point.values(quantity.metric, quantity.statistic),
            base.values(quantity.metric, quantity.statistic),
        )

    def _verdict(self, point: ComparisonPoint, quantity: Quantity, ratio: PairedRatio) -> str:
        if not (point.complete and self._at[self.baseline, point.level].complete):
            return "incomplete: not judged"
        return ratio.verdict(lower_is_better=quantity.lower_is_better) or not_judged(ratio.seeds)


def _counted(run: Run, summary: Summary) -> Sequence[RequestRecord]:
    if summary.window is None:
        return run.records
    first, last = summary.window
    return [record for record in run.records if first <= record.scheduled <= last]


def not_judged(seeds: int) -> str:
    """Return the text that replaces a verdict if there are too few seeds."""
    return f"{'one seed' if seeds == 1 else f'{seeds} seeds'}: not judged"


def compare(
    runs: Sequence[Run],
    baseline: str | None = None,
    cost_of: Callable[[str], CostModel | None] = lambda model: None,
) -> list[Comparison]:
    """Group runs into one comparison per workload; the comparison with the most runs comes first.

        (comparison,) = compare([read_run(path) for path in paths])
        comparison.cell(comparison.of("fastgen")[0], quantity_called("jct", "mean")).value

    Args:
        runs: Runs, oldest first.
        baseline: A backend's name or a run folder. None: ``fastgen-fcfs`` if it is among the runs, else the
            first run's label.
        cost_of: Returns the cost model of a model, for slowdowns, or None if there is none.

    Raises:
        ValueError: no run matches ``baseline``.
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
        raise ValueError(f"no run is called {baseline}: choose the baseline among {', '.join(names)}")
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
    """Give each entry a unique label per level and seed.

    The label is the backend's name, plus the settings that differ between backends of the same name. Runs
    that still have the same label are numbered.
    """
    by_name: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_name[entry.label].append(entry)
    seen: dict[tuple[str, float, int], int] = defaultdict(int)
    labelled = []
    for entry in entries:
        same_name = by_name[entry.label]
        keys = sorted({key for other in same_name for key in other.settings})
        differing = [key for key in keys if len({repr(other.settings.get(key)) for other in same_name}) > 1]
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
