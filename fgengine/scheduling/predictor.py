"""Predictions of output lengths, and the predictors that need no training. Pure."""

from __future__ import annotations

import math
import random
from typing import NamedTuple, Protocol

from fgengine.request import Request

MAX_SIGMA = 10.0
"""Upper bound of the sigma of a prediction."""


class Prediction(NamedTuple):
    """A lognormal distribution of a request's number of output tokens."""

    median: float
    """Tokens."""
    sigma: float
    """Standard deviation of the natural logarithm; 0: the length is known exactly."""

    def remaining(self, generated: int) -> float:
        """Return the expected number of tokens still to come after ``generated`` ones, at least 1.

        This is E[X - g | X > g] for the predicted length X. It corrects a wrong prediction as the answer
        grows: an answer longer than its median is probably much longer, and more so with a large sigma.
        """
        if self.sigma == 0.0:
            return max(1.0, self.median - generated)
        mu, sigma = math.log(self.median), self.sigma
        mean = math.exp(mu + sigma * sigma / 2)
        if generated <= 0:
            return max(1.0, mean)
        z = (math.log(generated) - mu) / sigma
        if z > 25.0:  # both tails underflow; use Mills' ratio
            return max(1.0, generated * sigma / (z - sigma)) if z > sigma else mean
        survivors = math.erfc(z / math.sqrt(2))
        return max(1.0, mean * math.erfc((z - sigma) / math.sqrt(2)) / survivors - generated)


class Predictor(Protocol):
    """The interface of a predictor of output lengths."""

    def predict(self, request: Request) -> Prediction:
        """Predict the output length of a request that has not run yet."""
        ...

    def learn(self, request: Request) -> None:
        """Learn from a request that finished normally; ``request.num_generated`` is its output length."""
        ...

    def close(self) -> None:
        """Save what was learned."""
        ...


class Oracle:
    """A predictor that returns ``max_tokens``.

    This is exact if EOS is ignored, as in benchmarks with forced lengths. Otherwise it is an upper bound.
    """

    def predict(self, request: Request) -> Prediction:
        """Return ``max_tokens`` as a certain prediction."""
        return Prediction(float(request.params.max_tokens), 0.0)

    def learn(self, request: Request) -> None:
        """Do nothing: an oracle does not learn."""

    def close(self) -> None:
        """Do nothing: there is nothing to save."""


class Noisy(Oracle):
    """A predictor that returns ``max_tokens`` times a lognormal random error.

    The error depends only on the request's id, so all policies see the same predictions.
    """

    def __init__(self, sigma: float) -> None:
        """Raises ValueError if ``sigma`` is not between 0 and ``MAX_SIGMA``."""
        if not 0.0 <= sigma <= MAX_SIGMA:
            raise ValueError(f"noisy:SIGMA takes a sigma between 0 and {MAX_SIGMA:g}, not {sigma}")
        self.sigma = sigma

    def predict(self, request: Request) -> Prediction:
        """Return ``max_tokens`` with the error of the request's id; the median is at least 1."""
        error = random.Random(request.id).gauss(0.0, self.sigma)
        return Prediction(max(1.0, request.params.max_tokens * math.exp(error)), self.sigma)
