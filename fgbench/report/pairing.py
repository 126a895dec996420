"""Which runs may be compared with each other. Pure.

Runs are comparable on one workload: the same model, dataset, number of prompts and arrival process, at any
rate and seed; closed loops of any concurrency. Two runs of one seed are paired only where their fingerprints
say that they were sent the same prompts and, under one load, at the same moments.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from fgbench.results.run import Run
from fgengine.units import number

_PER_RUN = ("rate", "seed", "fingerprint", "prompts_fingerprint", "prompt_tokens", "output_tokens")
"""Keys of a run's workload that differ by rate and seed."""
_NAMED = ("dataset", "num_prompts", "arrivals", "arrival_process", "users")
"""Those that are said otherwise: the process by its label, users by the prompts' fingerprint."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A load is measured along it; a level is a place on it."""

    name: str
    """In tables, JSON and CSV."""
    title: str
    """In pictures."""
    unit: str
    """Behind a level of it."""
    say: Callable[[float], str]
    """A level in words."""


def _rate(level: float) -> str:
    if math.isinf(level):
        return "all at once"
    return f"{number(level)} request{'' if level == 1.0 else 's'} / s"


RATE = Axis("rate", "offered rate (requests / s)", "/s", _rate)
CONCURRENCY = Axis(
    "concurrency",
    "concurrency (requests in flight)",
    " in flight",
    lambda level: f"{number(level, 6)} in flight",
)


def axis_of(workload: dict[str, Any]) -> Axis:
    """Of run.json's ``workload``."""
    return RATE if _workers(workload) is None else CONCURRENCY


def level_of(workload: dict[str, Any]) -> float:
    """Where on its axis it is: requests per second, infinite for all at once; or requests in flight."""
    workers = _workers(workload)
    return float(workload.get("rate") or "nan") if workers is None else float(workers)


def _workers(workload: dict[str, Any]) -> Any:
    """Of a closed loop, which asks for no rate; None of others."""
    return (workload.get("arrival_process") or {}).get("concurrency")


@dataclass(frozen=True, slots=True)
class WorkloadKey:
    """What two runs must share, besides level and seed, for their figures to be comparable."""

    model: str
    """The last part of its name: servers of other makes call a model by the path of its folder."""
    dataset: str
    num_prompts: int
    arrivals: str
    details: str
    """What else run.json says of the workload, and what is left out of the figures."""
    axis: Axis = RATE
    """Along which such runs are measured."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> WorkloadKey:
        work = info.get("workload") or {}
        axis = axis_of(work)
        others = {
            key: value for key, value in work.items() if key not in _PER_RUN + _NAMED and value is not None
        }
        if info.get("trim"):
            others["trim"] = info["trim"]
        return cls(
            model=PurePath(str(info.get("model", "unknown"))).name,
            dataset=str(work.get("dataset", "unknown")),
            num_prompts=int(work.get("num_prompts") or 0),
            arrivals="closed-loop" if axis is CONCURRENCY else str(work.get("arrivals", "unknown")),
            details=", ".join(f"{key} {json.dumps(others[key])}" for key in sorted(others)),
            axis=axis,
        )

    def describe(self) -> str:
        details = f" ({self.details})" if self.details else ""
        return (
            f"{self.model} on {self.dataset}, {self.num_prompts} prompts, {self.arrivals} arrivals{details}"
        )


@dataclass(slots=True)
class ComparableRuns:
    """Runs that may be compared."""

    workload: WorkloadKey
    runs: list[Run] = field(default_factory=list)
    _prompts: dict[int, str] = field(default_factory=dict)
    _sent: dict[tuple[int, float], str] = field(default_factory=dict)

    def takes(self, run: Run) -> bool:
        """Adds the run unless another one of its seed was sent something else."""
        if WorkloadKey.of(run.info) != self.workload:
            return False
        work = run.info.get("workload") or {}
        seed = seed_of(run.info)
        prompts, sent = str(work.get("prompts_fingerprint")), str(work.get("fingerprint"))
        at_level = (seed, level_of(work))
        if self._prompts.get(seed, prompts) != prompts or self._sent.get(at_level, sent) != sent:
            return False
        self._prompts[seed] = prompts
        self._sent[at_level] = sent
        self.runs.append(run)
        return True


def seed_of(info: dict[str, Any]) -> int:
    return int((info.get("workload") or {}).get("seed") or 0)


def settings_of(info: dict[str, Any]) -> dict[str, Any]:
    """A backend's settings; all that is known of one attached to is its URL."""
    backend = info.get("backend") or {}
    return dict(backend.get("settings") or {"url": backend.get("url")})


def group(runs: Iterable[Run]) -> list[ComparableRuns]:
    """In the order in which their first runs come."""
    groups: list[ComparableRuns] = []
    for run in runs:
        if not any(each.takes(run) for each in groups):
            groups.append(ComparableRuns(WorkloadKey.of(run.info)))
            groups[-1].takes(run)
    return groups


def differences(workloads: Iterable[WorkloadKey]) -> str:
    """In words what the workloads differ in, with the values: ``number of prompts (100, 150)``."""
    names = {
        "model": "model",
        "dataset": "dataset",
        "num_prompts": "number of prompts",
        "arrivals": "arrivals",
        "details": "settings",
    }
    all_of_them = list(workloads)
    said = []
    for attribute, name in names.items():
        values = dict.fromkeys(str(getattr(workload, attribute)) or "none" for workload in all_of_them)
        if len(values) > 1:
            said.append(f"{name} ({', '.join(values)})")
    return " and ".join(said) if said else "the prompts or arrival times themselves"


def without_repeats(runs: Sequence[Run]) -> list[Run]:
    """Of runs ordered oldest first that repeat each other (the same backend, settings, rate and seed) the
    newest, a complete one before an incomplete one; of those without a request none."""
    kept: dict[str, Run] = {}
    for run in runs:
        if not run.records:
            continue
        # The fingerprint is of the backend, its settings, and the workload with its rate and seed.
        key = f"{run.fingerprint or run.path} {settings_of(run.info).get('url')}"
        if key not in kept or run.complete or not kept[key].complete:
            kept[key] = run
    return list(kept.values())


def newest_comparable(runs: Sequence[Run]) -> list[Run]:
    """Of runs ordered oldest first: those comparable with the newest, without repeats."""
    with_records = [run for run in runs if run.records]
    if not with_records:
        return []
    groups = group(reversed(with_records))  # from the newest, which is in the first one
    chosen = {id(run) for run in groups[0].runs}
    return without_repeats([run for run in with_records if id(run) in chosen])
