"""The scheduler's statistics, served at /stats. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fgengine.scheduling.scheduler import Scheduler


def stats_of(scheduler: Scheduler) -> dict[str, Any]:
    """Return the scheduler's statistics as plain JSON data.

    They hold the counters since the start, the current numbers of requests by state and level, and the free
    blocks of each pool. The cost does not depend on the number of requests.
    """
    kv, queue = scheduler.kv, scheduler.queue
    running, swapped = scheduler.num_running, scheduler.num_swapped
    return {
        **asdict(scheduler.counters),
        "running": running,
        "swapped": swapped,
        "waiting": len(scheduler.requests) - running - swapped,
        "free_device_blocks": kv.device.num_free,
        "num_device_blocks": kv.device.num_blocks,
        "free_host_blocks": kv.host_available,
        "num_host_blocks": kv.host.num_blocks,
        "transfers_in_flight": kv.transfers_in_flight,
        "under_pressure": scheduler.under_pressure,
        "queued_requests": queue.waiting,
        "max_queue": queue.limit.requests,
        "unstarted_requests": queue.unstarted,
        "unstarted_prompt_tokens": queue.prompt_tokens,
        "max_queue_tokens": queue.limit.prompt_tokens,
        "queue_timeout": queue.limit.timeout,
        "block_bytes": scheduler.limits.block_bytes,
        "max_batch_size": scheduler.max_batch_size,
        "levels": [level._asdict() for level in scheduler.policy.levels()],
    }
