"""Groups runs of one workload into a comparison: labels, baseline, points over seeds, ratios, verdicts.
Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fgbench.metrics.accounts import Breakdown, MachineAccount, MemoryAccount
from fgbench.metrics.conditions import CacheAccount
from fgbench.metrics.latency import slowdowns
from fgbench.metrics.metric import metric_called
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.statistics import (
    MIN_SEEDS,
    Distribution,
    Estimate,
    Interval,
    PairedRatio,
    jain_index,
    largest_p,
)
from fgbench.metrics.summary import Summary
from fgbench.report.marks import Mark, marks_of, merged
from fgbench.report.pairing import RATE, Axis, WorkloadKey, group, level_of, seed_of, settings_of
from fgbench.report.quantities import QUANTITIES, Quantity
from fgbench.results.run import Run, summary_of
from fgengine.units import number

if TYPE_CHECKING:
    from fgengine.cost import CostModel

DEFAULT_BASELINES = ("fastgen-fcfs", "simulated-fcfs")
"""The label that begins with the first of these is the baseline, if the user chooses none."""
RATE_TOLERANCE = 0.02
"""A scheduled rate that differs from the requested one by a larger share is shown."""


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
    def planned(self) -> int:
        """Number of requests that the load was to send; with a time limit, that it sent."""
        work = self.run.info.get("workload") or {}
        if self.run.info.get("duration_limit_s"):
            return self.summary.requests + self.summary.trimmed
        return int(work.get("num_prompts") or 0)

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
    def answered(self) -> str:
        """``n of m``: requests answered in full, of those that count, over all runs of the point."""
        asked = sum(entry.planned - entry.summary.trimmed for entry in self.counted)
        return f"{sum(entry.summary.ok for entry in self.counted)} of {asked}"

    @property
    def seeds(self) -> list[int]:
        """The seeds that count."""
        return [entry.seed for entry in self.counted]

    @cached_property
    def repeats_one_workload(self) -> bool:
        """Whether all seeds sent the same requests at the same times, as when a complete trace is replayed.

        Then the seeds show how steady the machine is, not how another workload would differ.
        """
        return len(self.counted) > 1 and len({_workload_sent(entry.run) for entry in self.counted}) == 1

    @cached_property
    def marks(self) -> dict[Mark, str]:
        """The marks that the run of any seed has, with their details."""
        each = merged(marks_of(entry.run.info, entry.summary) for entry in self.counted)
        return {mark: ", ".join(sorted(set(details))) for mark, details in each.items()}

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
    _limits: dict[Quantity, float] = field(default_factory=dict, init=False, repr=False, compare=False)

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
    def names(self) -> dict[str, str]:
        """The name of each label for readers: with the policy, if the label does not tell it."""
        found = {}
        for label in self.labels:
            infos = [entry.run.info for point in self.of(label) for entry in point.entries]
            policies = {
                str(policy) for info in infos if (policy := (info.get("backend") or {}).get("policy"))
            }
            is_clear = not policies or any(policy in label for policy in policies)
            found[label] = label if is_clear else f"{label} ({', '.join(sorted(policies))})"
        return found

    @cached_property
    def seeds(self) -> list[int]:
        """All seeds, in ascending order."""
        return sorted({entry.seed for point in self.points for entry in point.entries})

    @property
    def runs(self) -> int:
        """Number of runs."""
        return sum(len(point.entries) for point in self.points)

    @property
    def natural_lengths(self) -> bool:
        """Whether the models ended their answers, so that output lengths are results."""
        infos = [entry.run.info for point in self.points for entry in point.entries]
        return any((info.get("workload") or {}).get("natural_lengths") for info in infos)

    @property
    def axis(self) -> Axis:
        """What levels measure: rate or concurrency."""
        return self.workload.axis

    def load_in_words(self, level: float) -> str:
        """Return a level in words, with the scheduled rate if it is not the requested one.

        Older runs have Poisson arrivals that were not scaled to the rate.
        """
        words = self.axis.describe(level)
        entries = [entry for point in self.at(level) if point.complete for entry in point.counted]
        rates = [rate for entry in entries if (rate := entry.summary.scheduled_rate)]
        if self.axis is not RATE or not rates or math.isinf(level):
            return words
        scheduled = fmean(rates)
        return (
            words
            if abs(scheduled / level - 1.0) <= RATE_TOLERANCE
            else f"{words} ({number(scheduled)} scheduled)"
        )

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
        interval = None if point.repeats_one_workload else estimate.interval
        return Cell(quantity, estimate.value, interval, ratio, verdict)

    def _ratio(self, point: ComparisonPoint, quantity: Quantity) -> PairedRatio | None:
        """Return the point's figure over the baseline's at the same level, paired by seed."""
        base = self._at.get((self.baseline, point.level))
        if base is None or base is point or quantity.better is None:
            return None
        ratio = PairedRatio.of(
            point.values(quantity.metric, quantity.statistic),
            base.values(quantity.metric, quantity.statistic),
        )
        repeated = ratio is not None and point.repeats_one_workload
        return replace(ratio, interval=None, p_value=None) if ratio and repeated else ratio

    def _verdict(self, point: ComparisonPoint, quantity: Quantity, ratio: PairedRatio) -> str:
        if not (point.complete and self._at[self.baseline, point.level].complete):
            return "incomplete: not judged"
        if point.repeats_one_workload:
            return "one workload repeated: not judged"
        limit = self._largest_p(quantity)
        return ratio.verdict(lower_is_better=quantity.lower_is_better, limit=limit) or not_judged(ratio.seeds)

    def _largest_p(self, quantity: Quantity) -> float:
        """Return the largest p-value that counts as a difference, among all ratios of one figure."""
        if quantity not in self._limits:
            judged = [
                point
                for point in self.points
                if point.complete and getattr(self._at.get((self.baseline, point.level)), "complete", False)
            ]
            ratios = [self._ratio(point, quantity) for point in judged]
            known = [ratio.p_value for ratio in ratios if ratio is not None and ratio.p_value is not None]
            self._limits[quantity] = largest_p(known)
        return self._limits[quantity]


def _workload_sent(run: Run) -> int:
    """Return a hash of what a run sent and when, without token ids; in a closed loop, without the times."""
    is_open = run.info.get("workload", {}).get("rate") not in (None, "inf")
    return hash(
        tuple(
            (record.index, record.scheduled if is_open else 0.0, record.prompt_tokens, record.asked_tokens)
            for record in sorted(run.records, key=lambda record: record.index)
        )
    )


def _counted(run: Run, summary: Summary) -> Sequence[RequestRecord]:
    if summary.window is None:
        return run.records
    first, last = summary.window
    return [record for record in run.records if first <= record.scheduled <= last]


def not_judged(seeds: int) -> str:
    """Return the text that replaces a verdict if there are too few seeds, or none that differ."""
    if seeds >= MIN_SEEDS:
        return "the same ratio for all seeds: not judged"
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
    differing = {name: _differing([entry.settings for entry in some]) for name, some in by_name.items()}
    seen: dict[tuple[str, float, int], int] = defaultdict(int)
    labelled = []
    for entry in entries:
        label = entry.label
        if keys := differing[label]:
            label += " (" + ", ".join(f"{key} {entry.settings.get(key)}" for key in keys) + ")"
        seen[label, entry.level, entry.seed] += 1
        repeat = seen[label, entry.level, entry.seed]
        labelled.append(replace(entry, label=label if repeat == 1 else f"{label} #{repeat}"))
    return tuple(labelled)


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the settings that are not the same in all of these."""
    values: dict[str, set[str]] = defaultdict(set)
    for each in settings:
        for key, value in each.items():
            values[key].add(repr(value))
    counted = Counter(key for each in settings for key in each)
    return sorted(key for key, some in values.items() if len(some) > 1 or counted[key] < len(settings))


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
    for name in DEFAULT_BASELINES:
        for entry in entries:
            if entry.label.startswith(name):
                return entry.label
    return entries[0].label
