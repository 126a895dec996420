"""From a sweep's settings to what runs it: systems, loads, the plan, and the searches."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fgbench.backends.backend import BackendError
from fgbench.benchmark import Load
from fgbench.cli.systems import (
    Choice,
    ensure_weights,
    parse_choice,
    repeating_options,
    servers_own,
    system_of,
    with_policy,
)
from fgbench.metrics.slo import parse_slo
from fgbench.spec.load import LoadSpec
from fgbench.spec.sweep import Settings
from fgbench.sweeping.estimate import Capacity, load_seconds, sampled_lengths
from fgbench.sweeping.plan import Plan, Point
from fgbench.sweeping.search import Search
from fgbench.sweeping.systems import Measured, Simulated, System
from fgbench.verdict import worst
from fgbench.workload.build import build_workload
from fgbench.workload.datasets import Dataset

if TYPE_CHECKING:
    from rich.console import Console

    from fgbench.sweeping.folder import SweepFolder
    from fgbench.sweeping.runner import Runner

SEARCHED_ABOVE = 8.0
"""Up to so many times its start a search's loads last for all of --duration; above they have fewer requests
than that takes."""


@dataclass(frozen=True, slots=True)
class Setup:
    settings: Settings
    choices: dict[str, Choice]
    systems: dict[str, System]
    plan: Plan
    dataset: Dataset
    capacities: dict[str, Capacity]
    """By label, where a profile tells."""

    def first_points(self) -> Iterator[Point]:
        """All of a grid; of searches the first probes."""
        if not self.settings.sweep.find_rate:
            yield from self.plan.grid(self.settings.levels, self.settings.seed_numbers)
            return
        for label in self.systems:
            for seed in self.settings.seed_numbers:
                yield self.plan.point(label, self.search(label).start, seed)

    def foretold(self, point: Point) -> float | None:
        """Seconds that a point's load takes; None where nothing tells, as of a simulation."""
        if self.systems[point.backend].simulated:
            return None
        load = self.plan.load(point.backend, point.level, point.seed)
        known = self.capacities.get(point.backend)
        return load_seconds(load, known.at(point.concurrency) if known else None)

    def options(self, point: Point) -> dict[str, Any]:
        """Those of ``fgbench run`` that repeat a point."""
        choice, client = self.choices[point.backend], self.settings.client
        load = replace(
            self.settings.load,
            rate=None if point.concurrency is not None else point.rate,
            concurrency=point.concurrency,
            seed=point.seed,
            num_prompts=self.plan.load(point.backend, point.level, point.seed).num_prompts,
        )
        spoken_to = None if choice.simulated else client
        return repeating_options(choice.backend, choice.url, load, spoken_to, choice.server)

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

    def pull_weights(self, console: Console) -> None:
        """Of the servers that are started here. Raises ValueError where that fails."""
        for choice in self.choices.values():
            if choice.url is None and not choice.simulated:
                try:
                    ensure_weights(choice.server, console)
                except BackendError as error:
                    raise ValueError(str(error)) from None

    def run(self, folder: SweepFolder, fail_fast: bool, console: Console) -> int:
        """Runs what is left, prints what it comes to, and gives the worst exit code."""
        from fgbench.client.display import display_for
        from fgbench.sweeping.progress import Total
        from fgbench.sweeping.runner import Runner
        from fgbench.sweeping.tables import results_table

        total = Total()
        runner = Runner(
            folder,
            self.plan,
            self.systems,
            self.dataset,
            display_for(console, total.header),
            total,
            foretold=self.foretold,
            options=self.options,
            max_error_rate=self.settings.load.max_error_rate,
            fail_fast=fail_fast,
        )
        if self.settings.sweep.find_rate:
            return self._find_rates(runner, fail_fast, console)
        results = runner.grid(list(self.first_points()))
        console.print(results_table(results))
        for result in results:
            if result.verdict.sentence:
                console.print(f"{result.point}: {result.verdict.sentence}", style="bold red", markup=False)
        return worst([result.verdict.code for result in results])

    def _find_rates(self, runner: Runner, fail_fast: bool, console: Console) -> int:
        from fgbench.sweeping.runner import Found
        from fgbench.sweeping.tables import search_tables

        assert self.settings.sweep.slo is not None
        slo = parse_slo(self.settings.sweep.slo)
        found: dict[str, Found] = {}
        for label in self.systems:
            found[label] = runner.find_rate(label, self.search(label), slo, self.settings.seed_numbers)
            if fail_fast and found[label].code:
                break
        console.print(search_tables(found, slo, self.settings.sweep.seeds))
        return worst([one.code for one in found.values()])


def set_up(settings: Settings, console: Console) -> Setup:
    """Everything that can be wrong is told here, before anything starts. Raises ValueError."""
    from fgbench.client.display import display_for

    choices = _choices(settings)
    load_options = _at_highest_level(settings)
    systems: dict[str, System] = {}
    loads: dict[str, Load] = {}
    for label, choice in choices.items():
        if choice.simulated:
            systems[label], loads[label] = _simulated(choice, console), load_options.to_load()
        else:
            backend, endpoint = system_of(choice.server, choice.backend, choice.url, alone=True)
            systems[label] = Measured(backend, label, restart=settings.sweep.restart)
            loads[label] = load_options.to_load(settings.client, endpoint)
    load = next(iter(loads.values()))
    if settings.load.speedup is not None:
        raise ValueError("--rates says how fast a trace is replayed: leave out --speedup")
    for rate in settings.sweep.rates:
        replace(load, rate=rate)
    dataset = settings.load.to_dataset(settings.server, display_for(console).report)
    workloads = {seed: _workload(dataset, replace(load, seed=seed)) for seed in settings.seed_numbers}
    lengths = sampled_lengths(dataset, settings.load.seed)
    capacities = {label: c for label, one in choices.items() if (c := _capacity(one, lengths)) is not None}
    setup = Setup(
        settings, choices, systems, Plan(_identities(systems), loads, workloads), dataset, capacities
    )
    if settings.sweep.find_rate:
        parse_slo(settings.sweep.slo or "")
        for label in systems:
            setup.search(label)
    list(setup.first_points())
    return setup


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


def _choices(settings: Settings) -> dict[str, Choice]:
    """By label. Raises ValueError for two that are one, and for options that none of them heeds."""
    choices: dict[str, Choice] = {}
    for text in settings.sweep.backend:
        choice = parse_choice(text, settings.server)
        if choice.label in choices:
            raise ValueError(f"--backend {choice.label} is there twice")
        choices[choice.label] = choice
    if all(choice.url is not None for choice in choices.values()):
        if settings.sweep.restart:
            raise ValueError("--restart is for servers that the sweep starts, and all of these run already")
        if wrong := servers_own(settings.server):
            raise ValueError(f"{wrong[0]} is a server's, and all of these run already")
    if all(choice.simulated for choice in choices.values()) and settings.client.endpoint is not None:
        raise ValueError("--endpoint is a server's; a simulation has none")
    return choices


def _simulated(choice: Choice, console: Console) -> Simulated:
    from fgbench.cli.simulate import bar
    from fgbench.simulated import Simulation, find_profile

    server = with_policy(choice.server, choice.backend)
    return Simulated(Simulation(server, find_profile(server)), functools.partial(bar, console=console))


def _identities(systems: dict[str, System]) -> dict[str, dict[str, object]]:
    """Raises ValueError for two backends that are the same, whatever they were called."""
    identities: dict[str, dict[str, object]] = {}
    for label, system in systems.items():
        for other, identity in identities.items():
            if identity == system.identity:
                raise ValueError(f"--backend {label} is the same as --backend {other}")
        identities[label] = system.identity
    return identities


def _workload(dataset: Dataset, load: Load) -> str:
    """Fingerprint of the requests, as they are before a server says how large its vocabulary is."""
    from fgbench.simulated import MOST_WITH_PROMPTS

    return build_workload(
        dataset,
        rate=load.rate,
        num_prompts=load.num_prompts,
        seed=load.seed,
        users=load.users,
        arrivals=load.arrivals,
        with_prompts=load.num_prompts <= MOST_WITH_PROMPTS,
    ).fingerprint


def _capacity(choice: Choice, lengths: list[tuple[int, int]]) -> Capacity | None:
    """What a profile of the model promises; None where there is none, or nothing to promise for."""
    from fgbench.simulated import find_profile

    if choice.url is not None:
        return None
    try:
        cost = find_profile(choice.server).cost
    except ValueError:
        return None
    return Capacity(cost, lengths, choice.server.max_batch_size)
