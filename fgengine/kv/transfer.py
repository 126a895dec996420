"""Copies of KV between the device pool and the host pool, and the interface that carries them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Direction = Literal["offload", "upload"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """A copy of one request's KV: block ``source[i]`` of one pool to block ``target[i]`` of the other."""

    id: int
    request_id: str
    direction: Direction
    source: Sequence[int]
    """Block numbers in the source pool."""
    target: Sequence[int]
    """Block numbers in the target pool."""


class CopyEngine(Protocol):
    """Carries out transfers concurrently with the running step, in any order.

    The contract: when ``done`` or ``wait`` returns a transfer, its bytes are in place. The scheduler uses
    neither its source blocks nor its target blocks for anything else before that.
    """

    def submit(self, transfer: Transfer) -> None:
        """Start the transfer; does not wait for it."""
        ...

    def done(self) -> list[Transfer]:
        """Return the transfers that finished since the last call. Never blocks.

        Raises RuntimeError if a copy failed; the engine cannot continue then.
        """
        ...

    def wait(self) -> list[Transfer]:
        """Like ``done``, but block until at least one transfer has finished, if any is in flight."""
        ...

    def close(self) -> None:
        """Release the resources of the copy engine."""
        ...
