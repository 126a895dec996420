"""Decisions about KV offloading that do not depend on the policy (FastServe, NSDI'26, section 5)."""

from __future__ import annotations

from collections import deque

from fgengine.cost import CostModel

RESERVE_WINDOW = 1.0
"""Seconds of arrival history from which the reserve is computed."""
RESERVE_SHARE = 0.25
"""Maximum share of the device pool that the reserve takes."""


class ArrivalReserve:
    """Number of device blocks to keep free for the prompts of new requests.

    It counts the prompt blocks of the requests that arrived within the last ``RESERVE_WINDOW`` seconds and
    have not started.
    """

    def __init__(self, num_device_blocks: int) -> None:
        self._cap = int(num_device_blocks * RESERVE_SHARE)
        self._arrivals: deque[tuple[float, str]] = deque()
        self._waiting: dict[str, int] = {}
        """Blocks of each recent prompt that has not started, by request id."""
        self._sum = 0

    def arrived(self, request_id: str, blocks: int, now: float) -> None:
        """Count a new request whose prompt needs ``blocks`` blocks."""
        self._arrivals.append((now, request_id))
        self._waiting[request_id] = blocks
        self._sum += blocks

    def started(self, request_id: str) -> None:
        """Stop counting the request: it holds its blocks now, or has ended."""
        self._sum -= self._waiting.pop(request_id, 0)

    def blocks(self, now: float) -> int:
        """Return the number of device blocks to keep free at ``now``."""
        while self._arrivals and self._arrivals[0][0] < now - RESERVE_WINDOW:
            self.started(self._arrivals.popleft()[1])
        return min(self._sum, self._cap)


def offload_is_faster(cost: CostModel, kv_bytes: int, num_tokens: int, batch_size: int) -> bool:
    """Whether offload and upload take no more time than recomputing ``num_tokens`` tokens.

    Args:
        kv_bytes: bytes of the offload and the upload together.
        batch_size: requests in a full batch.

    Only what recomputation adds to a step is counted, because it shares its step with the decodes of others.
    """
    recompute = cost.added_prefill_seconds(0, num_tokens, batch_size)
    return kv_bytes / cost.copy_bytes_per_second <= recompute
