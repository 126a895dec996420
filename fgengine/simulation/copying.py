"""A copy engine that takes the time the copies' bytes need, on a virtual clock."""

from __future__ import annotations

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

    def submit(self, transfer: Transfer) -> None:
        start = max(self.clock.now(), self._busy_until)
        self._busy_until = start + len(transfer.source) * self.seconds_per_block
        self._queue.append((self._busy_until, transfer))

    def done(self) -> list[Transfer]:
        finished = []
        while self._queue and self._queue[0][0] <= self.clock.now():
            finished.append(self._queue.popleft()[1])
        return finished

    def wait(self) -> list[Transfer]:
        if self._queue:
            self.clock.advance(max(0.0, self._queue[0][0] - self.clock.now()))
        return self.done()

    def close(self) -> None:
        self._queue.clear()
