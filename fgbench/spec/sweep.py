"""A sweep as it is asked for: kept in its folder, and compared when it goes on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from fgbench.spec.files import fingerprint, options_of
from fgbench.spec.load import ClientSpec, LoadSpec
from fgbench.workload.arrivals import ClosedLoop, Level
from fgengine.config import EngineConfig
from fgengine.settings import Setting, check, described

FREE = ("results", "max_error_rate")
"""Options of a load that decide no figure: they may be others when a sweep goes on."""
SECRET = tuple(one.name for one in described(ClientSpec) if one.setting.secret)
"""Options that no file holds: a sweep that goes on needs them again."""
MAX_BACKENDS, MAX_LEVELS, MAX_SEEDS = 32, 100, 100

_sweep = functools.partial(Setting, group="Sweep")
_search = functools.partial(Setting, group="Rate at an SLO")


def parse_rates(values: str) -> tuple[float, ...]:
    """``0.5,1,inf``: requests per second. Raises ValueError, naming what is no rate, for anything else."""

    def rate(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not value > 0.0:
            raise ValueError(f"--rates: {word!r} is not a rate above 0; write them like 0.5,1,1.5 or inf")
        return value

    return _distinct("--rates", values, rate)


def parse_concurrency(values: str) -> tuple[int, ...]:
    """``1,4,16``: requests in flight. Raises ValueError for anything else, as ``parse_rates`` does."""

    def workers(word: str) -> int:
        if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word) > 0):
            raise ValueError(f"--concurrency: {word!r} is no number of requests; write them like 1,4,16")
        return ClosedLoop(int(word)).workers

    return _distinct("--concurrency", values, workers)


def _distinct(option: str, values: str, read: Callable[[str], Any]) -> tuple[Any, ...]:
    words = [word.strip() for word in values.split(",")] if values.strip() else []
    if len(words) > MAX_LEVELS:
        raise ValueError(f"{option} takes at most {MAX_LEVELS} values, not {len(words)}")
    found: list[Any] = []
    for word in words:
        value = read(word)
        if value in found:
            raise ValueError(f"{option}: {word} is there twice")
        found.append(value)
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    """Which points a sweep has; the names are the command line's."""

    backend: Annotated[
        tuple[str, ...],
        _sweep(
            "fastgen, fastgen-POLICY, simulated, simulated-POLICY, or NAME=URL of a running server; with "
            "options of its own: 'fastgen --offloading proactive'. Once for each backend.",
            first=True,
        ),
    ] = ("fastgen",)
    rates: Annotated[
        tuple[float, ...],
        _sweep("Requests per second: 0.5,1,1.5,2; inf: all at once.", first=True, parse=parse_rates),
    ] = ()
    """For --find-rate: where the search starts, and within what it stays."""
    concurrency: Annotated[
        tuple[int, ...],
        _sweep(
            "Instead of --rates: 1,4,16 requests in flight, each sent when one has ended (closed loops).",
            parse=parse_concurrency,
        ),
    ] = ()
    seeds: Annotated[
        int, _sweep("How many seeds, from --seed on, at each rate.", first=True, ge=1, le=MAX_SEEDS)
    ] = 1
    restart: Annotated[bool, _sweep("A fresh server for each point; else one for each backend.")] = False
    find_rate: Annotated[
        bool,
        _search(
            "Search the highest rate that meets --slo. It starts at the first of --rates, else at the "
            "profile's capacity; of several it stays between the lowest and the highest."
        ),
    ] = False
    slo: Annotated[str | None, _search("Such as 'normalized_latency<0.3' or 'p95 ttft<1'.")] = None
    tolerance: Annotated[float, _search("The answer is to be within this share of itself.")] = 0.05
    max_probes: Annotated[int, _search("Rates tried for a backend at most.")] = 16

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that a sweep was asked to do."""

    sweep: SweepSpec
    load: LoadSpec
    """All but its rate."""
    client: ClientSpec
    server: EngineConfig

    def checked(self) -> Settings:
        """These settings. Raises ValueError for what no sweep can do."""
        sweep = self.sweep
        if not 1 <= len(sweep.backend) <= MAX_BACKENDS:
            raise ValueError(f"a sweep is over 1 to {MAX_BACKENDS} backends, not {len(sweep.backend)}")
        if sweep.slo is not None and not sweep.find_rate:
            raise ValueError(
                "--slo goes with --find-rate; to judge a sweep by one, give it to fgbench compare"
            )
        if sweep.find_rate and sweep.slo is None:
            raise ValueError("--find-rate needs --slo, such as --slo 'normalized_latency<0.3'")
        if sweep.concurrency and sweep.rates:
            raise ValueError("a sweep is over --rates or over --concurrency, not over both")
        if sweep.concurrency and sweep.find_rate:
            raise ValueError("--find-rate searches a rate, and a closed loop (--concurrency) has none")
        if not sweep.rates and not sweep.concurrency and not sweep.find_rate:
            raise ValueError(
                "--rates says at which rates to measure, such as --rates 0.5,1,1.5,2; or give --concurrency, "
                "such as 1,4,16"
            )
        if sweep.find_rate and any(math.isinf(rate) for rate in sweep.rates):
            raise ValueError("--find-rate searches among finite rates; inf is none")
        return self

    @property
    def levels(self) -> tuple[Level, ...]:
        concurrency = self.sweep.concurrency
        return tuple(map(ClosedLoop, concurrency)) if concurrency else self.sweep.rates

    @property
    def seed_numbers(self) -> range:
        return range(self.load.seed, self.load.seed + self.sweep.seeds)

    @property
    def plan(self) -> str:
        """Fingerprint of all that a sweep going on must share with what it was."""
        return fingerprint(**{name: value for name, value in self.options().items() if name not in FREE})

    def options(self) -> dict[str, Any]:
        """Every option by its name, as plain JSON."""
        found: dict[str, Any] = {}
        for group in reversed(self.to_json().values()):  # the sweep's concurrency hides the load's
            found |= group
        return found

    def to_json(self) -> dict[str, dict[str, Any]]:
        """But for what is secret."""
        groups = {"sweep": self.sweep, "load": self.load, "client": self.client, "server": self.server}
        return {name: {k: _plain(v) for k, v in options_of(group).items()} for name, group in groups.items()}

    @classmethod
    def from_json(cls, data: Any) -> Settings:
        """Raises ValueError for what is none."""
        import msgspec

        try:
            read = msgspec.convert(data, cls, strict=False, dec_hook=lambda kind, value: kind(value))
        except (msgspec.ValidationError, TypeError) as error:
            raise ValueError(f"not a sweep's settings: {error}") from None
        return read.checked()

    def with_given(self, given: Settings, names: Collection[str]) -> Settings:
        """These settings, with ``given``'s values for the options that a resumed sweep may change.

        ``names``: the options on the command line that resumes it.

        Raises:
            ValueError: another of ``names`` has a different value here. The message gives both values.
        """
        mine, theirs = self.options(), given.options()
        judged = sorted(set(names) - {*FREE, *SECRET})
        other = [name for name in judged if mine[name] != theirs[name]]
        if other:
            said = "; ".join(
                f"--{name.replace('_', '-')} is {_shown(mine[name])} in it and {_shown(theirs[name])} now"
                for name in other
            )
            raise ValueError(
                f"the sweep was begun with other settings: {said}. Leave the options out to go on with its "
                "own, or start a new sweep without --resume"
            )
        free = {name: getattr(given.load, name) for name in FREE if name in names}
        secret = {name: getattr(given.client, name) for name in SECRET if name in names}
        return replace(self, load=replace(self.load, **free), client=replace(self.client, **secret))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
