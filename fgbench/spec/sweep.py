"""The options of a sweep: saved in its folder, and compared when the sweep is resumed."""

from __future__ import annotations

import functools
import math
import shlex
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from fgbench.spec.client import ClientSpec
from fgbench.spec.files import fingerprint, options_of
from fgbench.spec.load import LoadSpec
from fgbench.spec.start import StartSpec
from fgbench.workload.arrivals import ClosedLoop, Level
from fgengine.config import EngineConfig
from fgengine.settings import Setting, check, described

FREE = ("results", "max_error_rate")
"""Options of a load that do not affect figures; a resumed sweep may change them."""
SECRET = tuple(one.name for one in described(ClientSpec) if one.setting.secret)
"""Options that are not saved; they must be given again when a sweep is resumed."""
Order = Literal["interleaved", "by-backend"]
"""Order of a sweep's points: the backends in turn at each rate and seed, or one backend after the other."""
MAX_BACKENDS, MAX_LEVELS, MAX_SEEDS = 32, 100, 100

_sweep = functools.partial(Setting, group="Sweep")
_search = functools.partial(Setting, group="Rate at an SLO")


def parse_rates(values: str) -> tuple[float, ...]:
    """Parse requests per second, such as ``0.5,1,inf``. Raises ValueError if an element is not a rate."""

    def rate(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not value > 0.0:
            raise ValueError(f"--rates: {word!r} is not a rate above 0: write rates like 0.5,1,1.5 or inf")
        return value

    return _distinct("--rates", values, rate)


def parse_concurrency(values: str) -> tuple[int, ...]:
    """Parse requests in flight, such as ``1,4,16``. Raises ValueError if an element is not a number."""

    def workers(word: str) -> int:
        if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word) > 0):
            raise ValueError(
                f"--concurrency: {word!r} is not a number of requests: write numbers like 1,4,16"
            )
        return ClosedLoop(int(word)).workers

    return _distinct("--concurrency", values, workers)


def _distinct(option: str, values: str, read: Callable[[str], Any]) -> tuple[Any, ...]:
    """Parse the comma-separated ``values``. Raises ValueError if one occurs twice or there are too many."""
    words = [word.strip() for word in values.split(",")] if values.strip() else []
    if len(words) > MAX_LEVELS:
        raise ValueError(f"{option} has {len(words)} values: give at most {MAX_LEVELS}")
    found: list[Any] = []
    for word in words:
        value = read(word)
        if value in found:
            raise ValueError(f"{option}: {word} is given twice: leave one out")
        found.append(value)
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSpec:
    """Options that decide the points of a sweep, under their names on the command line."""

    backend: Annotated[
        tuple[str, ...],
        _sweep(
            "fastgen, fastgen-POLICY, simulated, simulated-POLICY, vllm, vllm-chunked, NAME=URL of a running "
            "server, or 'NAME=command: COMMAND' with {model} and {port}. It can have its own options, and "
            "another name in tables: 'fastgen --offloading proactive', 'vllm-256=vllm --max-num-seqs 256'. "
            "Repeat it for each backend.",
            first=True,
        ),
    ] = ("fastgen",)
    vary: Annotated[
        tuple[str, ...],
        _sweep(
            "Measure each backend with each of these values of an option: max-batch-size=16,64,256. Repeat "
            "it for every combination with another option."
        ),
    ] = ()
    rates: Annotated[
        tuple[float, ...],
        _sweep("Requests per second, such as 0.5,1,1.5,2; inf: all at once.", first=True, parse=parse_rates),
    ] = ()
    """For --find-rate: the first rate to try, and the limits of the search."""
    concurrency: Annotated[
        tuple[int, ...],
        _sweep(
            "Instead of --rates: requests in flight, such as 1,4,16; one is sent when another ends (closed "
            "loops).",
            parse=parse_concurrency,
        ),
    ] = ()
    seeds: Annotated[
        int, _sweep("Number of seeds at each rate; the first is --seed.", first=True, ge=1, le=MAX_SEEDS)
    ] = 1
    stop_when_saturated: Annotated[
        bool,
        _sweep("Leave out the higher rates of a backend once a rate is above its capacity."),
    ] = False
    restart: Annotated[
        bool, _sweep("Start a new server for each point, instead of one for each backend.")
    ] = False
    order: Annotated[
        Order | None,
        _sweep(
            "interleaved: the backends take turns at each rate and seed, so a machine that changes with time "
            "favours none. A sweep runs only one of its servers at a time, so a turn starts a server. "
            "by-backend: all points of a backend, then the next; each server starts once. Default: "
            "interleaved."
        ),
    ] = None
    find_rate: Annotated[
        bool,
        _search(
            "Search the highest rate that meets --slo. The search starts at the first of --rates, else at "
            "the capacity that the profile predicts. With several --rates it remains between the lowest and "
            "the highest."
        ),
    ] = False
    slo: Annotated[
        str | None, _search("SLO to meet, such as 'normalized_latency<0.3' or 'p95 ttft<1' (seconds).")
    ] = None
    even_above_capacity: Annotated[
        bool,
        _search(
            "Accept rates above capacity that still meet --slo, as the FastServe paper does. There the "
            "answer depends on the number of requests: more of them give a lower rate."
        ),
    ] = False
    tolerance: Annotated[float, _search("Relative error of the found rate at which to stop.")] = 0.05
    max_probes: Annotated[int, _search("Maximum number of rates to try for each backend.")] = 16

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of a sweep."""

    sweep: SweepSpec
    load: LoadSpec
    """The load, without its rate."""
    client: ClientSpec
    server: EngineConfig
    start: StartSpec = field(default_factory=StartSpec)
    given: tuple[str, ...] = ()
    """Names of the ``server`` options that the user gave, also with their default values."""

    def checked(self) -> Settings:
        """Return these settings. Raises ValueError if they contradict each other or one is missing."""
        sweep = self.sweep
        backends = len(self.backends)
        if not 1 <= backends <= MAX_BACKENDS:
            raise ValueError(f"{backends} backends are given: a sweep takes 1 to {MAX_BACKENDS}")
        if sweep.slo is not None and not sweep.find_rate:
            raise ValueError(
                "--slo needs --find-rate: to check an SLO after a sweep, give it to fgbench compare"
            )
        if sweep.find_rate and sweep.slo is None:
            raise ValueError("--find-rate needs --slo, such as --slo 'normalized_latency<0.3'")
        if sweep.concurrency and sweep.rates:
            raise ValueError("--rates and --concurrency exclude each other: give only one")
        if sweep.concurrency and sweep.find_rate:
            raise ValueError(
                "--find-rate does not work with --concurrency, because a closed loop has no rate: leave one "
                "out"
            )
        if sweep.order is not None and sweep.find_rate:
            raise ValueError(
                "--order does not work with --find-rate, which searches for one backend after the other: "
                "leave it out"
            )
        if sweep.stop_when_saturated and (sweep.find_rate or sweep.concurrency):
            raise ValueError(
                "--stop-when-saturated is for --rates: a search ends by itself, and a closed loop is never "
                "above capacity"
            )
        if sweep.order is not None and backends == 1:
            raise ValueError("--order is for several backends, and only one is given: leave it out")
        if not sweep.rates and not sweep.concurrency and not sweep.find_rate:
            raise ValueError(
                "no rates are given: give --rates, such as 0.5,1,1.5,2, or --concurrency, such as 1,4,16"
            )
        if sweep.find_rate and any(math.isinf(rate) for rate in sweep.rates):
            raise ValueError("--find-rate does not work with the rate inf: give finite --rates")
        return self

    @property
    def backends(self) -> tuple[str, ...]:
        """The texts of all backends: those of ``--backend``, each with every combination of ``--vary``.

        Raises ValueError if a ``--vary`` cannot be read, or if a backend has no options.
        """
        texts = list(self.sweep.backend)
        for vary in self.sweep.vary:
            name, equals, values = vary.partition("=")
            flag = f"--{name.strip().removeprefix('--').replace('_', '-')}"
            if not equals or flag == "--" or not values.strip():
                raise ValueError(
                    f"--vary {vary!r} cannot be read: write OPTION=VALUE,VALUE, such as max-batch-size=16,64"
                )
            for text in texts:
                if "://" in text.split(" ")[0] or "=command:" in text:
                    raise ValueError(
                        f"--vary {vary} does not work with --backend {text}, whose options are not "
                        "fgbench's: give one backend for each value"
                    )
            different = _distinct("--vary", values, str)
            texts = [
                f"{_titled(text, value)} {flag} {shlex.quote(value)}" for text in texts for value in different
            ]
        return tuple(texts)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The rates of the sweep, or its closed loops."""
        concurrency = self.sweep.concurrency
        return tuple(map(ClosedLoop, concurrency)) if concurrency else self.sweep.rates

    @property
    def order(self) -> Order:
        """The order of the points."""
        several = len(self.backends) > 1 and not self.sweep.find_rate
        return self.sweep.order or ("interleaved" if several else "by-backend")

    @property
    def seed_numbers(self) -> range:
        """The seeds of the sweep."""
        return range(self.load.seed, self.load.seed + self.sweep.seeds)

    @property
    def plan(self) -> str:
        """Fingerprint of the settings that a resumed sweep must not change."""
        return fingerprint(**{name: value for name, value in self.options().items() if name not in FREE})

    def options(self) -> dict[str, Any]:
        """Return every option by its name, as plain JSON."""
        found: dict[str, Any] = {}
        for group in reversed(self._groups().values()):  # the sweep's concurrency overrides the load's
            found |= group
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON, in groups, without secret options."""
        return {**self._groups(), "given": list(self.given)}

    def _groups(self) -> dict[str, dict[str, Any]]:
        groups = {
            "sweep": self.sweep,
            "load": self.load,
            "client": self.client,
            "server": self.server,
            "start": self.start,
        }
        return {name: {k: _plain(v) for k, v in options_of(group).items()} for name, group in groups.items()}

    @classmethod
    def from_json(cls, data: Any) -> Settings:
        """Make settings from the result of ``to_json``. Raises ValueError if ``data`` is not valid."""
        import msgspec

        try:
            read = msgspec.convert(data, cls, strict=False, dec_hook=lambda kind, value: kind(value))
        except (msgspec.ValidationError, TypeError) as error:
            raise ValueError(f"not a sweep's settings: {error}") from None
        return read.checked()

    def with_given(self, given: Settings, names: Collection[str]) -> Settings:
        """Return these settings, with ``given``'s values for the options that a resumed sweep may change.

        Args:
            given: The settings on the command line that resumes the sweep.
            names: The options on that command line.

        Raises:
            ValueError: another of ``names`` has a different value here. The message gives both values.
        """
        saved, now = self.options(), given.options()
        fixed = sorted(set(names) - {*FREE, *SECRET})
        changed = [name for name in fixed if saved[name] != now[name]]
        if changed:
            differences = "; ".join(
                f"--{name.replace('_', '-')} is {_shown(saved[name])} there and {_shown(now[name])} now"
                for name in changed
            )
            raise ValueError(
                f"the sweep has other settings ({differences}): leave these options out, or start a new "
                "sweep without --resume"
            )
        free = {name: getattr(given.load, name) for name in FREE if name in names}
        secret = {name: getattr(given.client, name) for name in SECRET if name in names}
        return replace(self, load=replace(self.load, **free), client=replace(self.client, **secret))


def _titled(text: str, value: str) -> str:
    """Return a backend's text with the value added to the name that the user chose for it, if any."""
    word, space, rest = text.partition(" ")
    title, equals, backend = word.partition("=")
    return f"{title}-{value}={backend}{space}{rest}" if equals else text


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
