"""The points of a sweep: what each of them measures. They are known before any server starts. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgbench.spec.files import fingerprint
from fgbench.spec.load import Load
from fgbench.spec.sweep import Order
from fgbench.workload.arrivals import POISSON, ClosedLoop, Level

MAX_POINTS = 10_000


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One measurement of a sweep: a backend, a load and a seed."""

    backend: str
    """Label of the backend."""
    level: Level
    seed: int
    fingerprint: str
    """Hash of everything that affects the result."""

    @property
    def rate(self) -> float:
        """Requests per second; infinite in a closed loop, as in its run.json."""
        return math.inf if isinstance(self.level, ClosedLoop) else self.level

    @property
    def concurrency(self) -> int | None:
        """Requests in flight in a closed loop; None in an open loop."""
        return self.level.workers if isinstance(self.level, ClosedLoop) else None

    def __str__(self) -> str:
        if self.concurrency is not None:
            load = f"{self.concurrency} in flight"
        else:
            load = "all at once" if math.isinf(self.rate) else f"{self.rate:g}/s"
        return f"{self.backend}, {load}, seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for sweep.json."""
        data: dict[str, Any] = {
            "backend": self.backend,
            "rate": "inf" if math.isinf(self.rate) else self.rate,
        }
        if self.concurrency is not None:
            data["concurrency"] = self.concurrency
        return data | {"seed": self.seed, "fingerprint": self.fingerprint}


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """Makes the points of a sweep, with their fingerprints."""

    systems: Mapping[str, dict[str, Any]]
    """Backends by label: name, policy, settings, model, URL."""
    base: Load
    """The load that all points share, except level and seed."""
    workloads: Mapping[int, str]
    """Fingerprint of the requests by seed. It covers a file's content, not its name."""

    def point(self, backend: str, level: Level, seed: int) -> SweepPoint:
        """Return the point for a backend, a level and a seed."""
        load = self.load(level, seed)
        values = dataclasses.asdict(dataclasses.replace(load, arrivals=POISSON))
        values["arrivals"] = load.arrivals.label  # the workload's fingerprint covers the times of a trace
        values["trim"] = load.trim.to_json()
        plain = {name: str(v) if isinstance(v, float) and math.isinf(v) else v for name, v in values.items()}
        hashed = fingerprint(system=self.systems[backend], load=plain, workload=self.workloads[seed])
        return SweepPoint(backend, level, seed, hashed)

    def load(self, level: Level, seed: int) -> Load:
        """Return the load of a level and a seed."""
        load = dataclasses.replace(self.base, seed=seed)
        if isinstance(level, ClosedLoop):
            return dataclasses.replace(load, arrivals=level)
        return dataclasses.replace(load, rate=level)

    def grid(
        self, levels: Sequence[Level], seeds: Sequence[int], order: Order = "by-backend"
    ) -> Iterator[SweepPoint]:
        """Yield the points of a grid.

        ``interleaved``: all backends at one level and seed come together, so that what is compared is
        measured at nearly the same time. Every second time they come in reverse order. So none is always
        first, and the last one's server can remain for the next level.

        ``by-backend``: the points of one backend come together, with the levels of one seed together.

        Raises:
            ValueError: there are too many points.
        """
        if (count := len(self.systems) * len(levels) * len(seeds)) > MAX_POINTS:
            raise ValueError(f"{count:,} points are too many: a sweep has at most {MAX_POINTS:,}")
        backends = list(self.systems)
        if order == "by-backend":
            for backend in backends:
                for seed in seeds:
                    for level in levels:
                        yield self.point(backend, level, seed)
            return
        for i, seed in enumerate(seeds):
            for k, level in enumerate(levels):
                for backend in reversed(backends) if (i + k) % 2 else backends:
                    yield self.point(backend, level, seed)

    def describe(self) -> dict[str, Any]:
        """Return, for sweep.json, what the fingerprints cover besides the settings."""
        return {"systems": dict(self.systems), "workloads": {str(s): w for s, w in self.workloads.items()}}

    def changed_since(self, described: Mapping[str, Any]) -> str | None:
        """Return, in words, what differs from an earlier output of ``describe``; None if nothing differs.

        The settings of the sweep are assumed to be the same. A backend that was not there before is no
        change: the sweep was begun without it.
        """
        now = self.describe()
        changes = []
        for label, system in now["systems"].items():
            before = (described.get("systems") or {}).get(label) or system
            changes += [f"{name} of {label}" for name in _differing(before, system)]
        workloads_before = described.get("workloads") or {}
        if any(workloads_before.get(seed, hashed) != hashed for seed, hashed in now["workloads"].items()):
            changes.append("the requests of the dataset")
        return ", ".join(changes) or None


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the values that differ, including those in nested mappings."""
    names: list[str] = []
    for name in sorted({*before, *now}):
        if before.get(name) == now.get(name):
            continue
        nested = isinstance(before.get(name), dict) and isinstance(now.get(name), dict)
        names += _differing(before[name], now[name]) if nested else [name]
    return names
