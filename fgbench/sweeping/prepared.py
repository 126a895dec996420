"""Prepares a sweep from its settings: backends, loads, plan and searches."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fgbench.backends.backend import Backend, BackendError, Report, identity_of
from fgbench.backends.named import backend_of
from fgbench.backends.simulated import MAX_WITH_PROMPTS, find_profile
from fgbench.backends.vllm_options import TRANSLATED
from fgbench.benchmark import workload_of
from fgbench.metrics.slo import parse_slo
from fgbench.spec.backend import CLIENT_SIDE_OPTIONS, START_OPTIONS, BackendSpec, servers_own
from fgbench.spec.load import Load, LoadSpec
from fgbench.spec.start import StartSpec
from fgbench.spec.sweep import Settings
from fgbench.sweeping.estimate import Capacity, load_seconds, sampled_lengths
from fgbench.sweeping.plan import SweepPlan, SweepPoint
from fgbench.sweeping.search import Search
from fgbench.workload.datasets import Dataset
from fgengine.config import EngineConfig
from fgengine.settings import changed, described

SEARCHED_ABOVE = 8.0
"""A search has enough requests for all of --duration at rates up to this multiple of its first rate. At
higher rates, the load ends earlier."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that a sweep needs before it starts."""

    settings: Settings
    specs: dict[str, BackendSpec]
    """Specifications of the backends, by label."""
    backends: dict[str, Backend]
    """Backends, by label."""
    plan: SweepPlan
    dataset: Dataset
    capacities: dict[str, Capacity]
    """Capacities by label, for the backends with a profile."""

    def first_points(self) -> Iterator[SweepPoint]:
        """Yield all points of a grid, or the first probes of the searches."""
        if not self.settings.sweep.find_rate:
            settings = self.settings
            yield from self.plan.grid(settings.levels, settings.seed_numbers, settings.order)
            return
        for label in self.backends:
            for seed in self.settings.seed_numbers:
                yield self.plan.point(label, self.search(label).start, seed)

    def expected_seconds(self, point: SweepPoint) -> float | None:
        """Return the estimated seconds of a point's load; None if unknown, as for a simulation."""
        if self.backends[point.backend].simulated:
            return None
        load = self.plan.load(point.level, point.seed)
        capacity = self.capacities.get(point.backend)
        return load_seconds(load, capacity.at(point.concurrency) if capacity else None)

    def repeating_options(self, point: SweepPoint) -> dict[str, Any]:
        """Return the options with which ``fgbench run`` repeats a point."""
        load = replace(
            self.settings.load,
            rate=None if point.concurrency is not None else point.rate,
            concurrency=point.concurrency,
            seed=point.seed,
            num_prompts=self.plan.load(point.level, point.seed).num_prompts,
        )
        spec, server = self.specs[point.backend], self.settings.server
        found = spec.repeating_options(load, self.settings.client)
        if spec.kind in ("url", "command") and not found.get("tokenizer"):
            # A sweep counts tokens with one tokenizer for all backends.
            found["tokenizer"] = server.tokenizer or changed(server).get("model")
        return found

    def search(self, label: str) -> Search:
        """Return the search for a backend; raises ValueError if the first rate is unknown."""
        sweep, rates = self.settings.sweep, self.settings.sweep.rates
        if not rates and label not in self.capacities:
            raise ValueError(
                f"--find-rate needs a first rate, and {label} has no profile to estimate it: give one, such "
                "as --rates 1"
            )
        start = rates[0] if rates else float(f"{self.capacities[label].at():.3g}")
        search = Search(start, tolerance=sweep.tolerance, max_probes=sweep.max_probes)
        return replace(search, lowest=min(rates), highest=max(rates)) if len(rates) > 1 else search

    def prepare_backends(self, report: Report) -> None:
        """Do the slow work that is needed once, such as pulling weights; raises ValueError if it fails."""
        try:
            for backend in self.backends.values():
                backend.prepare(report)
        except BackendError as error:
            raise ValueError(str(error)) from None


def prepare(
    settings: Settings, specs: dict[str, BackendSpec], report: Report, *, without: Collection[str] = ()
) -> Prepared:
    """Prepare a sweep. All wrong settings are found here, before anything starts.

    Args:
        settings: The sweep's settings.
        specs: The sweep's backends, by label.
        report: Called with sentences about progress.
        without: Labels of backends that are not measured this time. The settings remain those of all
            backends, so that the same sweep can measure them later.

    Raises:
        ValueError: the settings are wrong.
    """
    _check_no_useless_options(settings, specs)
    specs = {label: spec for label, spec in specs.items() if label not in without}
    access = settings.client.access
    backends = {label: backend_of(spec, alone=True, access=access) for label, spec in specs.items()}
    load = _at_highest_level(settings).to_load(settings.client, settings.server)
    if settings.load.speedup is not None:
        raise ValueError("--rates already sets how fast a trace is replayed: leave out --speedup")
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


def _check_no_useless_options(settings: Settings, specs: dict[str, BackendSpec]) -> None:
    """Raise ValueError for an option that affects none of the backends."""
    kinds = {spec.kind for spec in specs.values()}
    if kinds == {"url"}:
        if settings.sweep.restart:
            raise ValueError(
                "--restart is for servers that the sweep starts, and all of these run already: leave it out"
            )
        if options := servers_own(settings.server):
            raise ValueError(f"{options[0]} is a server's option, and all of these run already: leave it out")
    if kinds.isdisjoint(("fastgen", "simulated")):
        meant = {*CLIENT_SIDE_OPTIONS, *(TRANSLATED if "vllm" in kinds else ())}
        for one in described(EngineConfig):
            if one.name in settings.given and one.name not in meant:
                raise ValueError(f"{one.flag} means nothing for any of the backends: leave it out")
    for one in described(StartSpec):
        is_set = one.name in changed(settings.start)
        if is_set and not any(one.name in START_OPTIONS[kind] for kind in kinds):
            raise ValueError(f"{one.flag} means nothing for any of the backends: leave it out")
    if any(spec.simulated for spec in specs.values()):
        settings.load.check_simulated()
    if all(spec.simulated for spec in specs.values()) and settings.client.of_a_server:
        raise ValueError(
            f"{settings.client.of_a_server} is a server's option, and all backends are simulated: leave it "
            "out"
        )
    if settings.client.needs_url and all(spec.url is None for spec in specs.values()):
        raise ValueError(
            f"{settings.client.needs_url} is for a server that runs already, and none of these does: leave "
            "it out"
        )


def _at_highest_level(settings: Settings) -> LoadSpec:
    """Return the load at the highest level, which determines the number of requests.

    With --duration, the number of requests follows from the rate. All points share the requests, so there
    must be enough for the highest rate.
    """
    if settings.sweep.concurrency:
        return replace(settings.load, concurrency=max(settings.sweep.concurrency))
    finite = [rate for rate in settings.sweep.rates if math.isfinite(rate)]
    if settings.load.duration is None or not finite:
        return settings.load
    searched = SEARCHED_ABOVE if settings.sweep.find_rate and len(finite) == 1 else 1.0
    return replace(settings.load, rate=max(finite) * searched)


def _identities(backends: dict[str, Backend]) -> dict[str, dict[str, object]]:
    """Return the identity of each backend; raises ValueError if two are the same under different labels."""
    identities: dict[str, dict[str, object]] = {}
    for label, backend in backends.items():
        identity = identity_of(backend)
        for other_label, other in identities.items():
            if other == identity:
                raise ValueError(f"--backend {label} is the same as --backend {other_label}: leave one out")
        identities[label] = identity
    return identities


def _workload(dataset: Dataset, load: Load) -> str:
    """Return the fingerprint of the requests, built before a server reports the size of its vocabulary."""
    return workload_of(dataset, load, num_warmup=0, vocab_size=None, max_prompts=MAX_WITH_PROMPTS).fingerprint


def _capacity(spec: BackendSpec, lengths: list[tuple[int, int]]) -> Capacity | None:
    """Return the capacity by a profile of the model; None without a profile, or for another server."""
    if spec.kind not in ("fastgen", "simulated"):
        return None
    try:
        cost = find_profile(spec.server).cost
    except ValueError:
        return None
    return Capacity(cost, lengths, spec.server.max_batch_size)
