"""A copy engine that takes the time the copies' bytes need, on a virtual clock."""

from __future__ import annotations

import math
from collections import deque

from fgengine.clock import VirtualClock
from fgengine.kv.transfer import Transfer


class SimulatedCopyEngine:
    """One copy after another at ``bytes_per_second``."""

    def __init__(self, clock: VirtualClock, block_bytes: int, bytes_per_second: float) -> None:
        self.clock = clock
        self.seconds_per_block = block_bytes / bytes_per_second
        self._queue: deque[tuple[float, Transfer]] = deque()
        self._busy_until = 0.0

    @property
    def next_end(self) -> float:
        """When the next of the copies in flight is done; infinite where there is none."""
        return self._queue[0][0] if self._queue else math.inf

    def submit(self, transfer: Transfer) -> None:
        start = max(self.clock.now(), self._busy_until)
        self._busy_until = start + len(transfer.source) * self.seconds_per_block
        self._queue.append((self._busy_until, transfer))

    def done(self) -> list[Transfer]:
        finished = []
        while self.next_end <= self.clock.now():
            finished.append(self._queue.popleft()[1])
        return finished

    def wait(self) -> list[Transfer]:
        if self._queue:
            self.clock.advance_to(max(self.clock.now(), self.next_end))
        return self.done()

    def close(self) -> None:
        self._queue.clear()
