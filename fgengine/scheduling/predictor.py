"""How long will the answer be? What policies that rank by length ask. Pure."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from fgengine.request import Request


class Prediction(NamedTuple):
    """A lognormal belief about a request's number of output tokens."""

    median: float
    """Tokens."""
    sigma: float
    """Standard deviation of the natural log; 0: it is known."""


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


def make_predictor(name: str, model: str) -> Predictor:
    """Raises ValueError for a name that is no predictor."""
    raise ValueError(f"there is no predictor {name!r}")
