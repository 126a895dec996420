"""Which replica a request goes to. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol


class ReplicaLoad(Protocol):
    """What a router sees of a replica."""

    @property
    def num_unfinished(self) -> int: ...

    @property
    def outstanding_seconds(self) -> float:
        """Predicted seconds of machine time that its unfinished requests take from their beginning."""
        ...


Router = Callable[[Sequence[ReplicaLoad]], int]
"""The replicas as they are when a request arrives -> the index of the one that gets it."""

ROUTERS = {
    "round-robin": "each in its turn",
    "least-loaded": "the least predicted work outstanding, by the cost model",
    "shortest-queue": "the fewest unfinished requests",
    "power-of-two": "of two at random the one with fewer unfinished requests",
}


def make_router(name: str, seed: int = 0) -> Router:
    """The first of equals is chosen. Raises ValueError for a name that is not in ``ROUTERS``."""
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
