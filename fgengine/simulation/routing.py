"""Routers: they choose the replica of each request. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol


class ReplicaLoad(Protocol):
    """The state of a replica that a router sees."""

    @property
    def num_unfinished(self) -> int:
        """Number of unfinished requests."""
        ...

    @property
    def outstanding_seconds(self) -> float:
        """Predicted machine time of its unfinished requests, each from its beginning, seconds."""
        ...


Router = Callable[[Sequence[ReplicaLoad]], int]
"""A function from the replicas, in their state when a request arrives, to the index of the chosen replica."""

ROUTERS = {
    "round-robin": "each replica in turn",
    "least-loaded": "the least predicted unfinished work, by the cost model",
    "shortest-queue": "the fewest unfinished requests",
    "power-of-two": "of two random replicas, the one with fewer unfinished requests",
}
"""Names of the routers with descriptions."""


def make_router(name: str, seed: int = 0) -> Router:
    """Create a router.

        router = make_router("power-of-two", seed=7)

    If replicas are equal, the first one is chosen.

    Args:
        name: a key of ``ROUTERS``.
        seed: seed of the random choices of ``power-of-two``.

    Raises ValueError if there is no such router.
    """
    if name == "round-robin":
        turns = count()
        return lambda replicas: next(turns) % len(replicas)
    if name == "least-loaded":
        return lambda replicas: _least([replica.outstanding_seconds for replica in replicas])
    if name == "shortest-queue":
        return lambda replicas: _least([replica.num_unfinished for replica in replicas])
    if name == "power-of-two":
        return _power_of_two(random.Random(seed))
    raise ValueError(f"there is no router {name!r}; there are {', '.join(ROUTERS)}")


def _least(values: Sequence[float]) -> int:
    return values.index(min(values))


def _power_of_two(source: random.Random) -> Router:
    def choose(replicas: Sequence[ReplicaLoad]) -> int:
        pair = source.sample(range(len(replicas)), min(2, len(replicas)))
        return min(pair, key=lambda index: replicas[index].num_unfinished)

    return choose
