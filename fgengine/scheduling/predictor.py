"""How long will the answer be? What policies that rank by length ask. Pure."""

from __future__ import annotations

import math
import random
from typing import NamedTuple, Protocol

from fgengine.request import Request

MAX_SIGMA = 10.0


class Prediction(NamedTuple):
    """A lognormal belief about a request's number of output tokens."""

    median: float
    """Tokens."""
    sigma: float
    """Standard deviation of the natural log; 0: it is known."""

    def remaining(self, generated: int) -> float:
        """Tokens still to be expected after ``generated`` ones: E[X - g | X > g], at least 1.

        It corrects a wrong prediction as the answer grows: one that has outlived its prediction is not
        about to end, it was longer all along, and the more so the less the prediction can be trusted.
        """
        if self.sigma == 0.0:
            return max(1.0, self.median - generated)
        mu, sigma = math.log(self.median), self.sigma
        mean = math.exp(mu + sigma * sigma / 2)
        if generated <= 0:
            return max(1.0, mean)
        z = (math.log(generated) - mu) / sigma
        if z > 25.0:  # both tails underflow; their ratio by Mills' expansion
            return max(1.0, generated * sigma / (z - sigma)) if z > sigma else mean
        survivors = math.erfc(z / math.sqrt(2))
        return max(1.0, mean * math.erfc((z - sigma) / math.sqrt(2)) / survivors - generated)


class Predictor(Protocol):
    def predict(self, request: Request) -> Prediction:
        """For a request that has not run yet."""
        ...

    def learn(self, request: Request) -> None:
        """It has finished by itself: this is how long it was."""
        ...

    def close(self) -> None:
        """Keep what was learned."""
        ...


class Oracle:
    """The truth, where EOS is ignored as in benchmarks with forced lengths; elsewhere an upper bound."""

    def predict(self, request: Request) -> Prediction:
        return Prediction(float(request.params.max_tokens), 0.0)

    def learn(self, request: Request) -> None:
        """There is nothing to learn."""

    def close(self) -> None:
        """There is nothing to keep."""


class Noisy(Oracle):
    """The truth times a lognormal error, the same for the same request id whatever the policy."""

    def __init__(self, sigma: float) -> None:
        """Raises ValueError for a sigma that is not between 0 and ``MAX_SIGMA``."""
        if not 0.0 <= sigma <= MAX_SIGMA:
            raise ValueError(f"noisy:SIGMA takes a sigma between 0 and {MAX_SIGMA:g}, not {sigma}")
        self.sigma = sigma

    def predict(self, request: Request) -> Prediction:
        error = random.Random(request.id).gauss(0.0, self.sigma)
        return Prediction(max(1.0, request.params.max_tokens * math.exp(error)), self.sigma)
