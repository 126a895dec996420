"""Which runs may be compared, under which labels, against which baseline. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from fgbench.metrics.statistics import Distribution
from fgbench.metrics.summary import Summary, summarize
from fgbench.results.run import Run

METRICS = (
    ("normalized_latency", "JCT / token"),
    ("jct", "JCT"),
    ("ttft", "TTFT"),
    ("tpot", "TPOT"),
)
STATISTICS = ("mean", "p50", "p95", "p99")
THROUGHPUTS = (
    ("request_throughput", "requests / s"),
    ("output_token_throughput", "output tokens / s"),
)
DEFAULT_BASELINE = "fastgen-fcfs"


@dataclass(frozen=True, slots=True)
class Workload:
    """What two runs must share, besides the rate, for their figures to be comparable."""

    model: str
    """The last part of its name: servers of other makes call a model by the path of its folder."""
    dataset: str
    num_prompts: int
    seed: int
    arrivals: str
    prompts: str
    """Fingerprint of the prompts and lengths; the same at every rate."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> Workload:
        work = info.get("workload") or {}
        return cls(
            model=PurePath(str(info.get("model", "unknown"))).name,
            dataset=str(work.get("dataset", "unknown")),
            num_prompts=int(work.get("num_prompts") or 0),
            seed=int(work.get("seed") or 0),
            arrivals=str(work.get("arrivals", "unknown")),
            prompts=str(work.get("prompts_fingerprint", "")),
        )

    def describe(self) -> str:
        return (
            f"{self.model} on {self.dataset}, {self.num_prompts} prompts, seed {self.seed}, "
            f"{self.arrivals} arrivals"
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One run, as a column of the comparison."""

    label: str
    rate: float
    run: Run
    summary: Summary

    @property
    def settings(self) -> dict[str, Any]:
        return settings_of(self.run.info)

    @classmethod
    def of(cls, run: Run) -> Entry:
        """Figures are computed anew from the records, so that all runs are measured by one definition."""
        workload = run.info.get("workload") or {}
        rate = float(workload.get("rate") or "nan")
        closed = "concurrency" in (workload.get("arrival_process") or {})  # no rate is asked for
        name = str((run.info.get("backend") or {}).get("name", "unknown"))
        return cls(name, rate, run, summarize(run.records, offered_rate=None if closed else rate))


@dataclass(frozen=True)
class Comparison:
    """Runs on one workload."""

    workload: Workload
    entries: tuple[Entry, ...]
    baseline: str
    """Label of the entries that the others are divided by, rate by rate."""

    @cached_property
    def rates(self) -> list[float]:
        return sorted({entry.rate for entry in self.entries})

    @cached_property
    def labels(self) -> list[str]:
        """The baseline last, so that what is new is read first."""
        names = list(dict.fromkeys(entry.label for entry in self.entries))
        return sorted(names, key=lambda name: (name == self.baseline, name))

    def at(self, rate: float) -> list[Entry]:
        here = [entry for entry in self.entries if entry.rate == rate]
        return sorted(here, key=lambda entry: self.labels.index(entry.label))

    def ratio(self, entry: Entry, metric: str, statistic: str | None = None) -> float | None:
        """``entry``'s figure over the baseline's at the same rate; None where there is none."""
        for other in self.entries:
            if other.label == self.baseline and other.rate == entry.rate and other is not entry:
                mine = figure(entry.summary, metric, statistic)
                theirs = figure(other.summary, metric, statistic)
                return mine / theirs if mine is not None and theirs else None
        return None


def settings_of(info: dict[str, Any]) -> dict[str, Any]:
    """A backend's settings; all that is known of one attached to is its URL."""
    backend = info.get("backend") or {}
    return dict(backend.get("settings") or {"url": backend.get("url")})


def figure(summary: Summary, metric: str, statistic: str | None = None) -> float | None:
    """A plain figure of the summary, or one ``statistic`` of a distribution."""
    value = getattr(summary, metric)
    if isinstance(value, Distribution):
        return float(getattr(value, statistic or "mean"))
    return value if value is None else float(value)


def compare(runs: Sequence[Run], baseline: str | None = None) -> list[Comparison]:
    """Group runs by workload, most runs first.

    ``baseline`` is a backend's name or a run folder; None: ``fastgen-fcfs`` where it is among them, else
    the first run's label.

    Raises:
        ValueError: ``baseline`` is none of the runs.
    """
    groups: dict[Workload, list[Entry]] = defaultdict(list)
    for run in runs:
        groups[Workload.of(run.info)].append(Entry.of(run))
    comparisons = []
    found = False
    for workload, plain in groups.items():
        entries = _label(plain)
        chosen = _find_baseline(entries, baseline)
        found = found or chosen is not None
        comparisons.append(Comparison(workload, entries, chosen or _default_baseline(entries)))
    if baseline is not None and not found:
        names = sorted({entry.label for comparison in comparisons for entry in comparison.entries})
        raise ValueError(f"no run is called {baseline}; choose the baseline among {', '.join(names)}")
    return sorted(comparisons, key=lambda comparison: -len(comparison.entries))


def differences(workloads: Iterable[Workload]) -> str:
    """In words what the workloads differ in, with the values: ``number of prompts (100, 150)``."""
    names = {
        "model": "model",
        "dataset": "dataset",
        "num_prompts": "number of prompts",
        "seed": "seed",
        "arrivals": "arrivals",
    }
    all_of_them = list(workloads)
    said = []
    for attribute, name in names.items():
        values = dict.fromkeys(str(getattr(workload, attribute)) for workload in all_of_them)
        if len(values) > 1:
            said.append(f"{name} ({', '.join(values)})")
    return " and ".join(said) if said else "the prompts themselves"


def newest_comparable(runs: Sequence[Run]) -> list[Run]:
    """Of runs ordered oldest first: those on the newest run's workload, and of runs that repeat each other
    (the same backend, settings and rate) the newest, a complete one before an incomplete one."""
    with_records = [run for run in runs if run.records]
    if not with_records:
        return []
    workload = Workload.of(with_records[-1].info)
    kept: dict[str, Run] = {}
    for run in with_records:
        if Workload.of(run.info) != workload:
            continue
        # The fingerprint is of the backend, its settings, and the workload with its rate.
        key = f"{run.fingerprint or run.path} {settings_of(run.info).get('url')}"
        if key not in kept or run.complete or not kept[key].complete:
            kept[key] = run
    return list(kept.values())


def _label(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Backends by name; those of one name with other settings also by the settings that differ; runs that
    are still alike are numbered."""
    by_name: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_name[entry.label].append(entry)
    seen: dict[tuple[str, float], int] = defaultdict(int)
    labelled = []
    for entry in entries:
        alike = by_name[entry.label]
        keys = sorted({key for other in alike for key in other.settings})
        differing = [key for key in keys if len({repr(other.settings.get(key)) for other in alike}) > 1]
        label = entry.label
        if differing:
            label += " (" + ", ".join(f"{key} {entry.settings.get(key)}" for key in differing) + ")"
        seen[label, entry.rate] += 1
        repeat = seen[label, entry.rate]
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
