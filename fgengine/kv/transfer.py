"""A copy of one request's KV between the device pool and the host pool, and who carries it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Direction = Literal["offload", "upload"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """Block ``source[i]`` of one tier is copied onto block ``target[i]`` of the other, for every i."""

    id: int
    request_id: str
    direction: Direction
    source: Sequence[int]
    target: Sequence[int]


class CopyEngine(Protocol):
    """Carries out transfers beside the running step, in any order and at its own pace.

    The scheduler only relies on this: after a transfer has been returned by ``done`` (or ``wait``) its
    bytes are in place, and until then neither its source nor its target blocks are used for anything else.
    """

    def submit(self, transfer: Transfer) -> None: ...

    def done(self) -> list[Transfer]:
        """The transfers finished since the last call; never blocks.

        Raises:
            RuntimeError: a copy failed; the engine cannot go on.
        """
        ...

    def wait(self) -> list[Transfer]:
        """As ``done``, but blocks until at least one transfer has finished, if any is in flight."""
        ...

    def close(self) -> None: ...
