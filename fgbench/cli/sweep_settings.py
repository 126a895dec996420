"""What a sweep was asked to do, as a value that is kept in its folder and compared when it goes on."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fgbench.cli.load_options import ClientOptions, LoadOptions
from fgbench.cli.options import ServerOptions
from fgbench.results.fingerprint import fingerprint
from fgbench.sweeping.plan import Level
from fgbench.workload.arrivals import Closed

FREE = ("results", "max_error_rate")
"""Options of a load that decide no figure: they may be others when a sweep goes on."""
FLAGS = {"rate": "--rates"}
"""Options that are not called ``--`` and the parameter's name."""
MOST_BACKENDS, MOST_LEVELS, MOST_SEEDS = 32, 100, 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    backend: tuple[str, ...]
    """As the user wrote them."""
    rate: tuple[float, ...]
    """Requests per second. For --find-rate: where the search starts, and within what it stays."""
    concurrency: tuple[int, ...] | None = None
    """Instead of rates: closed loops of so many requests in flight."""
    seeds: int = 1
    """How many, from the load's on."""
    restart: bool = False
    """A fresh server for each point, not for each backend."""
    find_rate: bool = False
    slo: str | None = None
    tolerance: float = 0.05
    max_probes: int = 16
    load: LoadOptions
    """All but its rate."""
    client: ClientOptions
    server: ServerOptions

    def checked(self) -> Settings:
        """These settings. Raises ValueError for what no sweep can do."""
        if not 1 <= len(self.backend) <= MOST_BACKENDS:
            raise ValueError(f"a sweep is over 1 to {MOST_BACKENDS} backends, not {len(self.backend)}")
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise ValueError(f"--seeds must be between 1 and {MOST_SEEDS}, not {self.seeds}")
        if self.slo is not None and not self.find_rate:
            raise ValueError(
                "--slo goes with --find-rate; to judge a sweep by one, give it to fgbench compare"
            )
        if self.find_rate and self.slo is None:
            raise ValueError("--find-rate needs --slo, such as --slo 'normalized_latency<0.3'")
        if self.concurrency and self.rate:
            raise ValueError("a sweep is over --rates or over --concurrency, not over both")
        if self.concurrency and self.find_rate:
            raise ValueError("--find-rate searches a rate, and a closed loop (--concurrency) has none")
        if not self.rate and not self.concurrency and not self.find_rate:
            raise ValueError(
                "--rates says at which rates to measure, such as --rates 0.5,1,1.5,2; or give --concurrency, "
                "such as 1,4,16"
            )
        if self.find_rate and any(math.isinf(rate) for rate in self.rate):
            raise ValueError("--find-rate searches among finite rates; inf is none")
        return self

    @property
    def levels(self) -> tuple[Level, ...]:
        return tuple(map(Closed, self.concurrency)) if self.concurrency else self.rate

    @property
    def seed_numbers(self) -> range:
        return range(self.load.seed, self.load.seed + self.seeds)

    @property
    def plan(self) -> str:
        """Fingerprint of all that a sweep going on must share with what it was."""
        return fingerprint(**{name: value for name, value in self.options().items() if name not in FREE})

    def options(self) -> dict[str, Any]:
        """Every option by its parameter's name, as plain JSON. The load's seed hides the server's."""
        groups = (asdict(self.server), asdict(self.client), asdict(self.load), self._own())
        return {name: _plain(value) for group in groups for name, value in group.items()}

    def to_json(self) -> dict[str, Any]:
        groups = {"load": asdict(self.load), "client": asdict(self.client), "server": asdict(self.server)}
        own: dict[str, Any] = {name: _plain(value) for name, value in self._own().items()}
        return own | {name: {k: _plain(v) for k, v in group.items()} for name, group in groups.items()}

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
        """These settings, but for the free ones among ``names``, the options that were given anew.

        Raises:
            ValueError: another of them is not what it is here; names each, with both values.
        """
        mine, theirs = self.options(), given.options()
        other = [name for name in sorted(names) if name not in FREE and mine[name] != theirs[name]]
        if other:
            said = "; ".join(
                f"{_flag(name)} is {_shown(mine[name])} in it and {_shown(theirs[name])} now"
                for name in other
            )
            raise ValueError(
                f"the sweep was begun with other settings: {said}. Leave the options out to go on with its "
                "own, or start a new sweep without --resume"
            )
        free = {name: getattr(given.load, name) for name in FREE if name in names}
        return replace(self, load=replace(self.load, **free))

    def _own(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in GROUPS}


GROUPS = ("load", "client", "server")


def parse_rates(text: str) -> tuple[float, ...]:
    """``0.5,1,inf``: requests per second. Raises ValueError, naming what is no rate, for anything else."""
    rates: list[float] = []
    for word in _words("--rates", text):
        try:
            rate = float(word)
        except ValueError:
            rate = math.nan
        if not rate > 0.0:
            raise ValueError(f"--rates: {word!r} is not a rate above 0; write them like 0.5,1,1.5 or inf")
        if rate in rates:
            raise ValueError(f"--rates: {word} is there twice")
        rates.append(rate)
    return tuple(rates)


def parse_concurrency(text: str) -> tuple[int, ...] | None:
    """``1,4,16``: requests in flight. Raises ValueError for anything else, as ``parse_rates`` does."""
    levels: list[int] = []
    for word in _words("--concurrency", text):
        if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word) > 0):
            raise ValueError(f"--concurrency: {word!r} is no number of requests; write them like 1,4,16")
        if int(word) in levels:
            raise ValueError(f"--concurrency: {word} is there twice")
        levels.append(Closed(int(word)).workers)
    return tuple(levels) or None


def _words(option: str, text: str) -> list[str]:
    if not text.strip():
        return []
    words = [word.strip() for word in text.split(",")]
    if len(words) > MOST_LEVELS:
        raise ValueError(f"{option} takes at most {MOST_LEVELS} values, not {len(words)}")
    return words


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _flag(name: str) -> str:
    return FLAGS.get(name, "--" + name.replace("_", "-"))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
