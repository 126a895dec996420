"""Arrival processes: compute, from a seed, the times at which requests arrive, before the load starts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

MAX_CONCURRENCY = 65_536
MAX_BURST = 1_000_000
CV_RANGE = (0.01, 100.0)
PROCESSES = ("poisson", "gamma", "uniform", "burst", "ramp", "stages", "trace", "closed")
MAX_STAGES = 100


class Arrivals(ABC):
    """An arrival process. The first request arrives at time 0."""

    __slots__ = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """One of ``PROCESSES``."""

    @property
    def parameters(self) -> dict[str, Any]:
        """Parameters of the pattern, other than rate, seed and count, as plain JSON."""
        return {}

    @property
    def label(self) -> str:
        """Name and parameters as text, such as ``gamma cv=2``; different for different patterns."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.parameters.items())])

    @property
    def concurrency(self) -> int | None:
        """Number of workers of a closed loop; None: an open loop."""
        return None

    @property
    def first(self) -> int:
        """Position of the first request in its source: in a trace, that of the window."""
        return 0

    def part(self, count: int, seed: int) -> Arrivals:
        """Return the process for one load of ``count`` requests: for a trace, one window of it."""
        return self

    def check(self, rate: float) -> None:
        """Raise ValueError if the process cannot have this rate, in requests per second."""
        if not rate > 0:
            raise ValueError(f"the rate must be above 0 requests per second (or inf), not {rate}")

    def mean_rate(self, rate: float) -> float | None:
        """Return the mean requests per second over the complete load; None: the server decides."""
        return rate

    @abstractmethod
    def times(self, rng: Generator, count: int, rate: float) -> tuple[float, ...]:
        """Return ``count`` arrival times in seconds since the start of the load, ascending.

        Raises ValueError if the process cannot have this rate.
        """


class RateScaled(Arrivals):
    """A process that draws a pattern and scales it to the rate.

    The n requests of a load arrive within ``(n - 1) / rate`` seconds, so the rate is met exactly. Unscaled
    gaps would miss it by about ``1 / sqrt(n)``: by 10% with 100 requests, which moves a load from below to
    above capacity. The same seed gives the same pattern at every rate. With ``rate=inf`` all requests arrive
    at time 0. Times are rounded to microseconds, because no client is more exact.
    """

    __slots__ = ()

    def times(self, rng: Generator, count: int, rate: float) -> tuple[float, ...]:
        self.check(rate)
        if math.isinf(rate) or count < 2:
            return (0.0,) * count
        return _scaled(self._pattern(rng, count), rate)

    @abstractmethod
    def _pattern(self, rng: Generator, count: int) -> NDArray[Any]:
        """Return ascending times in any unit, the first at 0."""


@dataclass(frozen=True, slots=True)
class Poisson(RateScaled):
    """A Poisson process: the gaps are independent and exponential, as for many independent users."""

    @property
    def name(self) -> str:
        return "poisson"

    def _pattern(self, rng: Generator, count: int) -> NDArray[Any]:
        return _from_zero(rng.standard_exponential(count - 1))


@dataclass(frozen=True, slots=True)
class Gamma(RateScaled):
    """Independent, gamma-distributed gaps; with ``cv`` above 1 they have more bursts than Poisson."""

    cv: float
    """Coefficient of variation of the gaps: standard deviation divided by mean."""

    def __post_init__(self) -> None:
        low, high = CV_RANGE
        if not low <= self.cv <= high:
            raise ValueError(
                f"--cv must be between {low:g} and {high:g}, not {self.cv} (0 is --arrivals uniform)"
            )

    @property
    def name(self) -> str:
        return "gamma"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"cv": self.cv}

    def _pattern(self, rng: Generator, count: int) -> NDArray[Any]:
        square = self.cv * self.cv
        return _from_zero(rng.standard_gamma(1.0 / square, count - 1))


@dataclass(frozen=True, slots=True)
class Uniform(RateScaled):
    """Equal gaps."""

    @property
    def name(self) -> str:
        return "uniform"

    def _pattern(self, rng: Generator, count: int) -> NDArray[Any]:
        import numpy as np

        return np.arange(count, dtype=float)


@dataclass(frozen=True, slots=True)
class Burst(RateScaled):
    """Bursts of ``size`` requests at the same time; the bursts are a Poisson process of ``rate / size``."""

    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_BURST:
            raise ValueError(f"--burst-size must be between 1 and {MAX_BURST}, not {self.size}")

    @property
    def name(self) -> str:
        return "burst"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"size": self.size}

    def _pattern(self, rng: Generator, count: int) -> NDArray[Any]:
        bursts = -(-count // self.size)
        burst_times = _from_zero(rng.standard_exponential(bursts - 1))
        return burst_times.repeat(self.size)[:count]


@dataclass(frozen=True, slots=True)
class Ramp(Arrivals):
    """A Poisson process whose rate changes linearly from ``rate`` to ``rate_to`` over the complete load.

    n requests take ``2 (n - 1) / (rate + rate_to)`` seconds. Fewer requests give a steeper ramp.
    """

    rate_to: float
    """Requests per second at the end."""

    def __post_init__(self) -> None:
        if not 0 < self.rate_to < math.inf:
            raise ValueError(f"--rate-to must be a number of requests per second above 0, not {self.rate_to}")

    @property
    def name(self) -> str:
        return "ramp"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"rate_to": self.rate_to}

    def check(self, rate: float) -> None:
        Arrivals.check(self, rate)
        if math.isinf(rate):
            raise ValueError("a ramp needs a finite --rate at its start")

    def mean_rate(self, rate: float) -> float | None:
        return (rate + self.rate_to) / 2

    def times(self, rng: Generator, count: int, rate: float) -> tuple[float, ...]:
        """Return arrival times: those of a unit Poisson process, mapped by an inverse function.

        The function is the expected number of arrivals, ``rate t + slope t^2 / 2``.
        """
        import numpy as np

        self.check(rate)
        if count < 2:
            return (0.0,) * count
        expected = np.array(_scaled(_from_zero(rng.standard_exponential(count - 1)), 1.0))
        end = 2 * (count - 1) / (rate + self.rate_to)
        slope = (self.rate_to - rate) / end
        times = 2 * expected / (rate + np.sqrt(np.maximum(rate * rate + 2 * slope * expected, 0.0)))
        return tuple(round(float(t), 6) for t in times)


@dataclass(frozen=True, slots=True)
class Stages(Arrivals):
    """A Poisson process whose rate changes from stage to stage, such as quiet, busy, quiet.

    At another mean rate than its own, it has the same pattern, stretched in time. With fewer requests than
    the stages have, it ends earlier. With more, the stages repeat.
    """

    stages: tuple[tuple[float, float], ...]
    """Requests per second, and seconds, of each stage."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.stages) <= MAX_STAGES:
            raise ValueError(f"--stages has {len(self.stages)} stages: give 1 to {MAX_STAGES}")
        for rate, seconds in self.stages:
            if not (0 <= rate < math.inf and 0 < seconds < math.inf):
                raise ValueError(
                    f"--stages: a stage of {rate:g} requests per second for {seconds:g} s cannot be made: "
                    "write RATE:SECONDS, such as 1:60,4:60,1:60"
                )
        if self.requests < 1:
            raise ValueError("--stages has less than one request: give higher rates, or longer stages")

    @classmethod
    def parse(cls, text: str) -> Stages:
        """Parse ``RATE:SECONDS,RATE:SECONDS``. Raises ValueError if it is something else."""
        try:
            pairs = [part.split(":") for part in text.split(",")]
            return cls(tuple((float(rate), float(seconds)) for rate, seconds in pairs))
        except ValueError as error:
            if str(error).startswith("--stages"):
                raise
            raise ValueError(
                f"--stages {text!r} cannot be read: write RATE:SECONDS, such as 1:60,4:60,1:60"
            ) from None

    @property
    def name(self) -> str:
        return "stages"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"stages": ",".join(f"{rate:g}:{seconds:g}" for rate, seconds in self.stages)}

    @property
    def requests(self) -> int:
        """Expected number of requests of all stages."""
        return round(sum(rate * seconds for rate, seconds in self.stages))

    @property
    def own_rate(self) -> float:
        """Mean requests per second."""
        return sum(rate * seconds for rate, seconds in self.stages) / sum(s for _, s in self.stages)

    def check(self, rate: float) -> None:
        Arrivals.check(self, rate)
        if math.isinf(rate):
            raise ValueError("--stages needs a finite --rate: leave it out to use the stages' own rates")

    def times(self, rng: Generator, count: int, rate: float) -> tuple[float, ...]:
        """Return arrival times: a Poisson process, mapped by the inverse of the expected arrivals."""
        import numpy as np

        self.check(rate)
        if count < 2:
            return (0.0,) * count
        unit = np.array(_scaled(_from_zero(rng.standard_exponential(count - 1)), 1.0))
        in_stages = [stage_rate * seconds for stage_rate, seconds in self.stages]
        expected = np.cumsum([0.0, *in_stages])
        ends = np.cumsum([0.0, *(seconds for _, seconds in self.stages)])
        rounds = np.floor(unit / expected[-1])
        # A stage without requests has no inverse: an arrival at its end comes after it.
        apart = np.arange(len(expected)) * 1e-9 * expected[-1] / len(expected)
        within = np.interp(unit - rounds * expected[-1], expected + apart, ends)
        times = (rounds * ends[-1] + within) * (self.own_rate / rate)
        return tuple(round(float(at), 6) for at in times)


@dataclass(frozen=True, slots=True)
class Replay(RateScaled):
    """The arrival times of a recorded trace, scaled to the rate.

    A load with fewer requests than the trace has replays a window of it: the beginning for seed 0, another
    window for each other seed. So several seeds show how much the figures depend on the part of the trace.
    """

    trace: str
    """Name of the trace."""
    recorded: tuple[float, ...] = field(repr=False)
    """Arrival times in seconds since the first request, ascending."""
    first: int = 0
    """Position of the first request in the complete trace."""
    total: int | None = None
    """Number of requests of the complete trace; None: this is the complete one."""

    def __post_init__(self) -> None:
        if not self.recorded:
            raise ValueError(f"the trace {self.trace} has no requests: give another file")

    @property
    def name(self) -> str:
        return "trace"

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "trace": self.trace,
            "requests": len(self.recorded),
            "first": self.first,
            "of": self.total or len(self.recorded),
        }

    @property
    def label(self) -> str:
        """Name and size, without the position of the window, so that seeds can be compared."""
        size = len(self.recorded)
        of = f" of={self.total}" if self.total not in (None, size) else ""
        return f"trace {self.trace} requests={size}{of}"

    @property
    def own_rate(self) -> float:
        """Requests per second of the recording; infinite if all arrived at once."""
        span = self.recorded[-1]
        return (len(self.recorded) - 1) / span if span > 0 else math.inf

    def part(self, count: int, seed: int) -> Replay:
        """Return the window of ``count`` requests that a seed replays.

        Raises ValueError if the trace has fewer.
        """
        import numpy as np

        spare = len(self.recorded) - count
        if spare < 0:
            raise ValueError(
                f"the trace {self.trace} has {len(self.recorded)} requests, fewer than {count}: lower "
                "--num-prompts"
            )
        first = int(np.random.default_rng(seed).integers(spare + 1)) if seed else 0
        window = self.recorded[first : first + count]
        times = tuple(round(at - window[0], 6) for at in window) or self.recorded[:1]
        return replace(self, recorded=times, first=first, total=len(self.recorded))

    def times(self, rng: Generator, count: int, rate: float) -> tuple[float, ...]:
        """Return the times of the first ``count`` requests."""
        return RateScaled.times(self.part(count, 0), rng, count, rate)

    def _pattern(self, rng: Generator, count: int) -> NDArray[Any]:
        import numpy as np

        return np.array(self.recorded[:count])


@dataclass(frozen=True, slots=True)
class ClosedLoop(Arrivals):
    """A closed loop: each of ``workers`` workers sends its next request when its last one has ended.

    Only the order of the requests is fixed; the server decides the times. Such a load never exceeds the
    server's capacity. So it does not show how long requests wait in an open loop.
    """

    workers: int
    """Number of requests in flight."""

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MAX_CONCURRENCY:
            raise ValueError(f"--concurrency must be between 1 and {MAX_CONCURRENCY}, not {self.workers}")

    @property
    def name(self) -> str:
        return "closed"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"concurrency": self.workers}

    @property
    def concurrency(self) -> int | None:
        return self.workers

    def mean_rate(self, rate: float) -> float | None:
        return None

    def times(self, rng: Generator, count: int, rate: float) -> tuple[float, ...]:
        return (0.0,) * count


POISSON = Poisson()
TimeUnit = Literal["s", "ms", "us"]
"""A unit of the times in a trace."""
Level = float | ClosedLoop
"""An amount of load: requests per second, or a closed loop."""


def _scaled(pattern: NDArray[Any], rate: float) -> tuple[float, ...]:
    """Return the times of a pattern that starts at 0; n requests take ``(n - 1) / rate`` seconds."""
    span = float(pattern[-1])
    factor = (len(pattern) - 1) / (rate * span) if span > 0.0 else 0.0
    return tuple(round(float(at) * factor, 6) for at in pattern)


def _from_zero(gaps: NDArray[Any]) -> NDArray[Any]:
    """Return times from gaps; the first time is 0."""
    import numpy as np

    return np.concatenate(([0.0], gaps.cumsum()))
