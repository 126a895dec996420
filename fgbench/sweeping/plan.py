"""The points of a sweep as values: what each measures, known before any server starts. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgbench.spec.files import fingerprint
from fgbench.spec.load import Load
from fgbench.workload.arrivals import POISSON, ClosedLoop, Level

MAX_POINTS = 10_000


@dataclass(frozen=True, slots=True)
class SweepPoint:
    backend: str
    """The label of its system."""
    level: Level
    seed: int
    fingerprint: str
    """Of all that decides the result."""

    @property
    def rate(self) -> float:
        """Requests per second; infinite in a closed loop, as it is in its run."""
        return math.inf if isinstance(self.level, ClosedLoop) else self.level

    @property
    def concurrency(self) -> int | None:
        """Requests in flight of a closed loop; None of an open one."""
        return self.level.workers if isinstance(self.level, ClosedLoop) else None

    def __str__(self) -> str:
        if self.concurrency is not None:
            load = f"{self.concurrency} in flight"
        else:
            load = "all at once" if math.isinf(self.rate) else f"{self.rate:g}/s"
        return f"{self.backend}, {load}, seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "backend": self.backend,
            "rate": "inf" if math.isinf(self.rate) else self.rate,
        }
        if self.concurrency is not None:
            told["concurrency"] = self.concurrency
        return told | {"seed": self.seed, "fingerprint": self.fingerprint}


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """From a place in the grid to its point."""

    systems: Mapping[str, dict[str, Any]]
    """What is measured, by label: name, policy, settings, model, URL."""
    base: Load
    """How all are loaded, but for level and seed."""
    workloads: Mapping[int, str]
    """By seed, the fingerprint of the requests: of a file's content, not of its name."""

    def point(self, backend: str, level: Level, seed: int) -> SweepPoint:
        load = self.load(level, seed)
        told_of = dataclasses.asdict(dataclasses.replace(load, arrivals=POISSON))
        told_of["arrivals"] = load.arrivals.label  # a trace's times are in the workload's fingerprint
        told_of["trim"] = load.trim.to_json()
        plain = {name: str(v) if isinstance(v, float) and math.isinf(v) else v for name, v in told_of.items()}
        told = fingerprint(system=self.systems[backend], load=plain, workload=self.workloads[seed])
        return SweepPoint(backend, level, seed, told)

    def load(self, level: Level, seed: int) -> Load:
        load = dataclasses.replace(self.base, seed=seed)
        if isinstance(level, ClosedLoop):
            return dataclasses.replace(load, arrivals=level)
        return dataclasses.replace(load, rate=level)

    def grid(self, levels: Sequence[Level], seeds: Sequence[int]) -> Iterator[SweepPoint]:
        """A backend's points together, since they share a server; of these one seed's levels together, since
        an interrupted sweep then has whole curves.

        Raises:
            ValueError: there are too many.
        """
        if (count := len(self.systems) * len(levels) * len(seeds)) > MAX_POINTS:
            raise ValueError(f"{count:,} points are too many; a sweep has at most {MAX_POINTS:,}")
        for backend in self.systems:
            for seed in seeds:
                for level in levels:
                    yield self.point(backend, level, seed)

    def describe(self) -> dict[str, Any]:
        """For sweep.json: what the fingerprints are over, besides the settings."""
        return {"systems": dict(self.systems), "workloads": {str(s): w for s, w in self.workloads.items()}}

    def changed_since(self, described: Mapping[str, Any]) -> str | None:
        """In words what is not as it was ``described``, though the settings are the same; None if all is."""
        now = self.describe()
        said = []
        for label, system in now["systems"].items():
            was = (described.get("systems") or {}).get(label) or {}
            said += [f"{name} of {label}" for name in _differing(was, system)]
        was_sent = described.get("workloads") or {}
        if any(was_sent.get(seed, told) != told for seed, told in now["workloads"].items()):
            said.append("the requests of the dataset")
        return ", ".join(said) or None


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of what differs, those of settings without the word."""
    names: list[str] = []
    for name in sorted({*was, *now}):
        if was.get(name) == now.get(name):
            continue
        nested = isinstance(was.get(name), dict) and isinstance(now.get(name), dict)
        names += _differing(was[name], now[name]) if nested else [name]
    return names
