"""When requests arrive, computed before the load starts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.random import Generator


def poisson_arrivals(rng: Generator, count: int, rate: float) -> tuple[float, ...]:
    """Absolute arrival times in seconds of a Poisson process seen from one of its arrivals.

    The first request arrives at 0 and each gap after it is exponential with mean ``1 / rate``. The gaps are
    drawn at rate 1 and divided by ``rate``, so one seed gives the same pattern at every rate, stretched.
    ``rate=inf``: all at 0. Times are rounded to the microsecond, which no client can keep anyway.
    """
    if not rate > 0:
        raise ValueError(f"the rate must be above 0 requests per second (or inf), not {rate}")
    if math.isinf(rate) or count < 2:
        return (0.0,) * count
    unit_times = rng.standard_exponential(count - 1).cumsum()
    return (0.0, *(round(float(t) / rate, 6) for t in unit_times))
