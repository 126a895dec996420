"""Decides which runs may be compared with each other. Pure.

Runs are comparable if they have the same workload: the same model, dataset, number of prompts and arrival
process. Rate, seed and the concurrency of closed loops may differ. Two runs of one seed are paired only if
their fingerprints show that they were sent the same prompts and, at the same rate, at the same times.
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
"""Keys of a run's workload that may differ between rates and seeds."""
_NAMED = ("dataset", "num_prompts", "arrivals", "arrival_process", "users")
"""Keys that ``WorkloadKey`` covers in another way: the process by its label, users by the prompts'
fingerprint.
"""


@dataclass(frozen=True, slots=True)
class Axis:
    """How loads are measured: by rate or by concurrency. A level is a value on the axis."""

    name: str
    """Name in tables, JSON and CSV."""
    title: str
    """Name in pictures."""
    unit: str
    """Text after a level, such as ``/s``."""
    describe: Callable[[float], str]
    """Returns a level in words."""


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
    """Return the axis for ``workload`` of run.json."""
    return RATE if _workers(workload) is None else CONCURRENCY


def level_of(workload: dict[str, Any]) -> float:
    """Return the level on the axis: requests per second (infinite for all at once), or requests in flight."""
    workers = _workers(workload)
    return float(workload.get("rate") or "nan") if workers is None else float(workers)


def _workers(workload: dict[str, Any]) -> Any:
    """Return the concurrency of a closed loop, which has no rate; None for an open loop."""
    return (workload.get("arrival_process") or {}).get("concurrency")


@dataclass(frozen=True, slots=True)
class WorkloadKey:
    """What two runs must have in common to be comparable. Level and seed may differ."""

    model: str
    """Last part of the model's name, since some servers name a model by the path of its folder."""
    dataset: str
    num_prompts: int
    arrivals: str
    details: str
    """Other settings of the workload in run.json, and the trimming."""
    axis: Axis = RATE
    """What levels measure."""
    duration: float | None = None
    """Seconds after which no more requests were sent; None: all were sent."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> WorkloadKey:
        """Return the key of a run, from run.json."""
        work = info.get("workload") or {}
        axis = axis_of(work)
        others = {
            key: value for key, value in work.items() if key not in _PER_RUN + _NAMED and value is not None
        }
        for limit in ("trim", "max_concurrency"):
            if info.get(limit):
                others[limit] = info[limit]
        return cls(
            model=PurePath(str(info.get("model", "unknown"))).name,
            dataset=str(work.get("dataset", "unknown")),
            num_prompts=int(work.get("num_prompts") or 0),
            arrivals="closed-loop" if axis is CONCURRENCY else str(work.get("arrivals", "unknown")),
            details=", ".join(f"{key} {json.dumps(others[key])}" for key in sorted(others)),
            axis=axis,
            duration=info.get("duration_limit_s"),
        )

    def describe(self) -> str:
        """Return one line of text for titles."""
        details = f" ({self.details})" if self.details else ""
        amount = f"{self.num_prompts} prompts" if self.duration is None else f"{self.duration:g} s"
        return f"{self.model} on {self.dataset}, {amount}, {self.arrivals} arrivals{details}"


@dataclass(slots=True)
class ComparableRuns:
    """Runs that may be compared with each other."""

    workload: WorkloadKey
    runs: list[Run] = field(default_factory=list)
    _prompts: dict[int, str] = field(default_factory=dict)
    _sent: dict[tuple[int, float], str] = field(default_factory=dict)

    def takes(self, run: Run) -> bool:
        """Add the run and return True, or return False if it is not comparable with the others.

        It is not comparable if its workload differs, or if another run of its seed was sent other prompts.
        """
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
    """Return the seed of a run, from run.json."""
    return int((info.get("workload") or {}).get("seed") or 0)


def settings_of(info: dict[str, Any]) -> dict[str, Any]:
    """Return a backend's settings, from run.json; for an attached server, only its URL is known."""
    backend = info.get("backend") or {}
    return dict(backend.get("settings") or {"url": backend.get("url")})


def group(runs: Iterable[Run]) -> list[ComparableRuns]:
    """Group comparable runs; groups are in the order of their first runs."""
    groups: list[ComparableRuns] = []
    for run in runs:
        if not any(each.takes(run) for each in groups):
            groups.append(ComparableRuns(WorkloadKey.of(run.info)))
            groups[-1].takes(run)
    return groups


def differences(workloads: Iterable[WorkloadKey]) -> str:
    """Describe how the workloads differ, with the values: ``number of prompts (100, 150)``."""
    names = {
        "model": "model",
        "dataset": "dataset",
        "num_prompts": "number of prompts",
        "duration": "duration",
        "arrivals": "arrivals",
        "details": "settings",
    }
    keys = list(workloads)
    found = []
    for attribute, name in names.items():
        values = dict.fromkeys(str(getattr(key, attribute)) or "none" for key in keys)
        if len(values) > 1:
            found.append(f"{name} ({', '.join(values)})")
    return " and ".join(found) if found else "the prompts or arrival times themselves"


def without_repeats(runs: Sequence[Run]) -> list[Run]:
    """Return one run for each backend, settings, rate and seed: the newest complete one, else the newest.

    ``runs`` is ordered oldest first. Runs without requests are left out.
    """
    newest: dict[str, Run] = {}
    for run in runs:
        if not run.records:
            continue
        # The fingerprint covers the backend, its settings, and the workload with its rate and seed.
        key = f"{run.fingerprint or run.path} {settings_of(run.info).get('url')}"
        if key not in newest or run.complete or not newest[key].complete:
            newest[key] = run
    return list(newest.values())


def newest_comparable(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that are comparable with the newest one, perhaps with repeats.

    ``runs`` is ordered oldest first.
    """
    with_records = [run for run in runs if run.records]
    if not with_records:
        return []
    groups = group(reversed(with_records))  # newest first, so the first group contains the newest run
    chosen = {id(run) for run in groups[0].runs}
    return [run for run in with_records if id(run) in chosen]
