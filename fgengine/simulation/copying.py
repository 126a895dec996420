"""A simulated copy engine, on a virtual clock or in real time."""

from __future__ import annotations

import math
from collections import deque

from fgengine.clock import SettableClock
from fgengine.kv.transfer import Transfer


class SimulatedCopyEngine:
    """A copy engine (``CopyEngine``) that executes one copy after another at ``bytes_per_second``."""

    def __init__(self, clock: SettableClock, block_bytes: int, bytes_per_second: float) -> None:
        self.clock = clock
        self.seconds_per_block = block_bytes / bytes_per_second
        self._queue: deque[tuple[float, Transfer]] = deque()
        """(time at which it is done, transfer), in order of execution."""
        self._busy_until = 0.0

    @property
    def next_end(self) -> float:
        """When the next copy in flight is done, seconds; infinite if there is none."""
        return self._queue[0][0] if self._queue else math.inf

    def submit(self, transfer: Transfer) -> None:
        """Queue the transfer after those already submitted."""
        start = max(self.clock.now(), self._busy_until)
        self._busy_until = start + len(transfer.source) * self.seconds_per_block
        self._queue.append((self._busy_until, transfer))

    def done(self) -> list[Transfer]:
        """Return the transfers that are done at the clock's time."""
        finished = []
        while self.next_end <= self.clock.now():
            finished.append(self._queue.popleft()[1])
        return finished

    def wait(self) -> list[Transfer]:
        """Advance the clock to the end of the next copy and return the transfers that are done."""
        if self._queue:
            self.clock.advance_to(max(self.clock.now(), self.next_end))
        return self.done()

    def close(self) -> None:
        """Drop all transfers."""
        self._queue.clear()
