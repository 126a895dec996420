"""Which KV leaves the device, and when: the choices that are not the policy's (section 5)."""

from __future__ import annotations

from collections import deque

from fgengine.cost import CostModel

RESERVE_WINDOW = 1.0
"""Seconds of arrival history that the reserve is taken from."""
RESERVE_SHARE = 0.25
"""The most of the device pool that is kept free for arrivals."""


class ArrivalReserve:
    """Device blocks to keep free for prompts: those of the last second's arrivals that have not started."""

    def __init__(self, num_device_blocks: int) -> None:
        self._cap = int(num_device_blocks * RESERVE_SHARE)
        self._arrivals: deque[tuple[float, str]] = deque()
        self._waiting: dict[str, int] = {}
        """Blocks of the prompts that arrived lately and wait."""
        self._sum = 0

    def arrived(self, request_id: str, blocks: int, now: float) -> None:
        self._arrivals.append((now, request_id))
        self._waiting[request_id] = blocks
        self._sum += blocks

    def started(self, request_id: str) -> None:
        """The request holds its blocks, or is gone."""
        self._sum -= self._waiting.pop(request_id, 0)

    def blocks(self, now: float) -> int:
        while self._arrivals and self._arrivals[0][0] < now - RESERVE_WINDOW:
            self.started(self._arrivals.popleft()[1])
        return min(self._sum, self._cap)


def swap_is_sooner(cost: CostModel, kv_bytes: int, num_tokens: int) -> bool:
    """Whether copying ``kv_bytes``, out and back together, takes less time than recomputing ``num_tokens``.

    Recomputation rides along with a step, so a step's constant share is not charged to it.
    """
    recompute = cost.iteration_seconds(0, num_tokens) - cost.step
    return kv_bytes / cost.copy_bytes_per_second <= recompute
