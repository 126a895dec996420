"""Arrival processes: compute, from a seed, the times at which requests arrive, before the load starts."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

MAX_CONCURRENCY = 65_536
MAX_BURST = 1_000_000
CV_RANGE = (0.01, 100.0)
PROCESSES = ("poisson", "gamma", "uniform", "burst", "ramp", "trace", "closed")


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
    """A process that draws its pattern at one request per second and scales it to the rate.

    So the same seed gives the same pattern at every rate. With ``rate=inf`` all requests arrive at time 0.
    Times are rounded to microseconds, because no client is more exact.
    """

    __slots__ = ()

    def times(self, rng: Generator, count: int, rate: float) -> tuple[float, ...]:
        self.check(rate)
        if math.isinf(rate) or count < 2:
            return (0.0,) * count
        return tuple(round(float(t) / rate, 6) for t in self._at_one_per_second(rng, count))

    @abstractmethod
    def _at_one_per_second(self, rng: Generator, count: int) -> NDArray[Any]: ...


@dataclass(frozen=True, slots=True)
class Poisson(RateScaled):
    """A Poisson process: the gaps are independent and exponential, as for many independent users."""

    @property
    def name(self) -> str:
        return "poisson"

    def _at_one_per_second(self, rng: Generator, count: int) -> NDArray[Any]:
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

    def _at_one_per_second(self, rng: Generator, count: int) -> NDArray[Any]:
        square = self.cv * self.cv
        return _from_zero(rng.standard_gamma(1.0 / square, count - 1) * square)


@dataclass(frozen=True, slots=True)
class Uniform(RateScaled):
    """Equal gaps."""

    @property
    def name(self) -> str:
        return "uniform"

    def _at_one_per_second(self, rng: Generator, count: int) -> NDArray[Any]:
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

    def _at_one_per_second(self, rng: Generator, count: int) -> NDArray[Any]:
        bursts = -(-count // self.size)
        burst_times = _from_zero(rng.standard_exponential(bursts - 1) * self.size)
        return burst_times.repeat(self.size)[:count]


@dataclass(frozen=True, slots=True)
class Ramp(Arrivals):
    """A Poisson process whose rate changes linearly from ``rate`` to ``rate_to`` over the complete load.

    n requests take ``2 (n - 1) / (rate + rate_to)`` seconds on average. Fewer requests give a steeper ramp;
    with the other processes they give the first part of a longer load.
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

        The function is the expected number of arrivals, ``rate t + slope t^2 / 2``. After the end of the ramp
        the rate remains ``rate_to``.
        """
        import numpy as np

        self.check(rate)
        if count < 2:
            return (0.0,) * count
        expected = _from_zero(rng.standard_exponential(count - 1))
        end = 2 * (count - 1) / (rate + self.rate_to)
        slope = (self.rate_to - rate) / end
        on_ramp = np.minimum(expected, count - 1)
        times = 2 * on_ramp / (rate + np.sqrt(rate * rate + 2 * slope * on_ramp))
        times += (expected - on_ramp) / self.rate_to
        return tuple(round(float(t), 6) for t in times)


@dataclass(frozen=True, slots=True)
class Replay(RateScaled):
    """The arrival times of a recorded trace, scaled to the rate."""

    trace: str
    """Name of the trace."""
    recorded: tuple[float, ...] = field(repr=False)
    """Arrival times in seconds since the first request, ascending."""

    def __post_init__(self) -> None:
        if not self.recorded:
            raise ValueError(f"the trace {self.trace} has no requests: give another file")

    @property
    def name(self) -> str:
        return "trace"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"trace": self.trace, "requests": len(self.recorded)}

    @property
    def label(self) -> str:
        return f"trace {self.trace} requests={len(self.recorded)}"

    @property
    def own_rate(self) -> float:
        """Requests per second of the recording; infinite if all arrived at once."""
        span = self.recorded[-1]
        return (len(self.recorded) - 1) / span if span > 0 else math.inf

    def times(self, rng: Generator, count: int, rate: float) -> tuple[float, ...]:
        if count > len(self.recorded):
            raise ValueError(
                f"the trace {self.trace} has {len(self.recorded)} requests, fewer than {count}: lower "
                "--num-prompts"
            )
        return RateScaled.times(self, rng, count, rate)

    def _at_one_per_second(self, rng: Generator, count: int) -> NDArray[Any]:
        import numpy as np

        if math.isinf(self.own_rate):
            return np.zeros(count)
        return np.array(self.recorded[:count]) * self.own_rate


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
Level = float | ClosedLoop
"""An amount of load: requests per second, or a closed loop."""


def _from_zero(gaps: NDArray[Any]) -> NDArray[Any]:
    """Return times from gaps; the first time is 0."""
    import numpy as np

    return np.concatenate(([0.0], gaps.cumsum()))
