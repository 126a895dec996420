"""How much of the device is kept free for arrivals, so that they need not wait for a copy (section 5)."""

from __future__ import annotations

from collections import deque

RESERVE_WINDOW = 1.0
"""Seconds of arrival history that the reserve is taken from."""
RESERVE_SHARE = 0.25
"""The most of the device pool that is kept free for arrivals."""


class ArrivalReserve:
    """Blocks to keep free for prompts that are about to arrive: as many as arrived in the last second."""

    def __init__(self, num_device_blocks: int) -> None:
        self._cap = int(num_device_blocks * RESERVE_SHARE)
        self._arrivals: deque[tuple[float, int]] = deque()
        self._sum = 0

    def arrived(self, blocks: int, now: float) -> None:
        self._arrivals.append((now, blocks))
        self._sum += blocks

    def blocks(self, now: float) -> int:
        while self._arrivals and self._arrivals[0][0] < now - RESERVE_WINDOW:
            self._sum -= self._arrivals.popleft()[1]
        return min(self._sum, self._cap)
