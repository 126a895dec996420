"""From a sweep's settings to what runs it: backends, loads, the plan, and the searches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from fgbench.backends.backend import Backend, BackendError, Report, identity_of
from fgbench.backends.named import backend_of
from fgbench.backends.simulated import MAX_WITH_PROMPTS, find_profile
from fgbench.metrics.slo import parse_slo
from fgbench.spec.backend import BackendSpec, servers_own
from fgbench.spec.load import Load, LoadSpec
from fgbench.spec.sweep import Settings
from fgbench.sweeping.estimate import Capacity, load_seconds, sampled_lengths
from fgbench.sweeping.plan import SweepPlan, SweepPoint
from fgbench.sweeping.search import Search
from fgbench.workload.build import build_workload
from fgbench.workload.datasets import Dataset

SEARCHED_ABOVE = 8.0
"""Up to so many times its start a search's loads last for all of --duration; above they have fewer requests
than that takes."""


@dataclass(frozen=True, slots=True)
class Prepared:
    settings: Settings
    specs: dict[str, BackendSpec]
    """By label, as ``backends``."""
    backends: dict[str, Backend]
    plan: SweepPlan
    dataset: Dataset
    capacities: dict[str, Capacity]
    """By label, where a profile says."""

    def first_points(self) -> Iterator[SweepPoint]:
        """All of a grid; of searches the first probes."""
        if not self.settings.sweep.find_rate:
            yield from self.plan.grid(self.settings.levels, self.settings.seed_numbers)
            return
        for label in self.backends:
            for seed in self.settings.seed_numbers:
                yield self.plan.point(label, self.search(label).start, seed)

    def expected_seconds(self, point: SweepPoint) -> float | None:
        """That a point's load takes; None where that is not known, as of a simulation."""
        if self.backends[point.backend].simulated:
            return None
        load = self.plan.load(point.level, point.seed)
        known = self.capacities.get(point.backend)
        return load_seconds(load, known.at(point.concurrency) if known else None)

    def repeating_options(self, point: SweepPoint) -> dict[str, Any]:
        """Those of ``fgbench run`` that repeat a point."""
        load = replace(
            self.settings.load,
            rate=None if point.concurrency is not None else point.rate,
            concurrency=point.concurrency,
            seed=point.seed,
            num_prompts=self.plan.load(point.level, point.seed).num_prompts,
        )
        return self.specs[point.backend].repeating_options(load, self.settings.client)

    def search(self, label: str) -> Search:
        """Raises ValueError where nothing says from which rate to start."""
        sweep, rates = self.settings.sweep, self.settings.sweep.rates
        if not rates and label not in self.capacities:
            raise ValueError(
                f"--find-rate needs a rate to start from: there is no profile that tells {label}'s capacity; "
                "give one, such as --rates 1"
            )
        start = rates[0] if rates else float(f"{self.capacities[label].at():.3g}")
        search = Search(start, tolerance=sweep.tolerance, max_probes=sweep.max_probes)
        return replace(search, lowest=min(rates), highest=max(rates)) if len(rates) > 1 else search

    def prepare_backends(self, report: Report) -> None:
        """What takes long and is done once, such as pulling weights. Raises ValueError where that fails."""
        try:
            for backend in self.backends.values():
                backend.prepare(report)
        except BackendError as error:
            raise ValueError(str(error)) from None


def prepare(settings: Settings, specs: dict[str, BackendSpec], report: Report) -> Prepared:
    """Everything that can be wrong is found here, before anything starts.

    ``specs``: the sweep's backends, by label. Raises ValueError.
    """
    _check_heeded(settings, specs)
    headers = settings.client.headers
    backends = {label: backend_of(spec, alone=True, headers=headers) for label, spec in specs.items()}
    load = _at_highest_level(settings).to_load(settings.client)
    if settings.load.speedup is not None:
        raise ValueError("--rates says how fast a trace is replayed: leave out --speedup")
    for rate in settings.sweep.rates:
        replace(load, rate=rate)
    dataset = settings.load.to_dataset(settings.server, report)
    workloads = {seed: _workload(dataset, replace(load, seed=seed)) for seed in settings.seed_numbers}
    lengths = sampled_lengths(dataset, settings.load.seed)
    capacities = {label: c for label, one in specs.items() if (c := _capacity(one, lengths)) is not None}
    plan = SweepPlan(_identities(backends), load, workloads)
    prepared = Prepared(settings, specs, backends, plan, dataset, capacities)
    if settings.sweep.find_rate:
        parse_slo(settings.sweep.slo or "")
        for label in backends:
            prepared.search(label)
    list(prepared.first_points())
    return prepared


def _check_heeded(settings: Settings, specs: dict[str, BackendSpec]) -> None:
    """Raises ValueError for an option that none of the backends heeds."""
    if all(spec.url is not None for spec in specs.values()):
        if settings.sweep.restart:
            raise ValueError("--restart is for servers that the sweep starts, and all of these run already")
        if wrong := servers_own(settings.server):
            raise ValueError(f"{wrong[0]} is a server's, and all of these run already")
    if all(spec.simulated for spec in specs.values()) and settings.client.endpoint is not None:
        raise ValueError("--endpoint is a server's; a simulation has none")
    if settings.client.headers and all(spec.url is None for spec in specs.values()):
        raise ValueError("--header and --api-key are for servers that run already, and none of these does")


def _at_highest_level(settings: Settings) -> LoadSpec:
    """With --duration the number of requests follows from the rate; points share it, for they share the
    requests, and so it must be enough for the highest rate."""
    if settings.sweep.concurrency:
        return replace(settings.load, concurrency=max(settings.sweep.concurrency))
    finite = [rate for rate in settings.sweep.rates if math.isfinite(rate)]
    if settings.load.duration is None or not finite:
        return settings.load
    searched = SEARCHED_ABOVE if settings.sweep.find_rate and len(finite) == 1 else 1.0
    return replace(settings.load, rate=max(finite) * searched)


def _identities(backends: dict[str, Backend]) -> dict[str, dict[str, object]]:
    """Raises ValueError for two backends that are the same, whatever they were called."""
    identities: dict[str, dict[str, object]] = {}
    for label, backend in backends.items():
        mine = identity_of(backend)
        for other, identity in identities.items():
            if identity == mine:
                raise ValueError(f"--backend {label} is the same as --backend {other}")
        identities[label] = mine
    return identities


def _workload(dataset: Dataset, load: Load) -> str:
    """Fingerprint of the requests, as they are before a server says how large its vocabulary is."""
    return build_workload(
        dataset,
        rate=load.rate,
        num_prompts=load.num_prompts,
        seed=load.seed,
        users=load.users,
        arrivals=load.arrivals,
        with_prompts=load.num_prompts <= MAX_WITH_PROMPTS,
    ).fingerprint


def _capacity(spec: BackendSpec, lengths: list[tuple[int, int]]) -> Capacity | None:
    """What a profile of the model promises; None where there is none, or nothing to promise for."""
    if spec.url is not None:
        return None
    try:
        cost = find_profile(spec.server).cost
    except ValueError:
        return None
    return Capacity(cost, lengths, spec.server.max_batch_size)
