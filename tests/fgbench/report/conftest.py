"""Fake runs in memory, without a folder."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fgbench.metrics.record import RequestRecord
from fgbench.results.run import Run

PORTS = count(40000)
"""Every run's server has another port; repeated runs are identified by their fingerprint."""
SERVER_REPORT = {
    "queued": 0.25,
    "swapped": 0.0,
    "prefill": 0.25,
    "decode": 0.5,
    "preemptions": 2.0,
    "bytes_moved": 4096.0,
}

MEMORY = {
    "before": {"uptime_seconds": 10.0, "pressure_seconds": 0.0, "copy_wait_seconds": 1.0},
    "after": {"uptime_seconds": 110.0, "pressure_seconds": 31.0, "copy_wait_seconds": 46.0},
}
"""In 100 s, the device was idle for copies for 45 s, and memory was under pressure for 31 s."""


def record(
    index: int, latency: float, server: dict[str, float] | None, scheduled: float | None = None
) -> RequestRecord:
    """Return a request with two tokens: one after half of ``latency``, one at its end."""
    scheduled = 0.5 * index if scheduled is None else scheduled
    times = (scheduled + latency / 2, scheduled + latency)
    return RequestRecord(
        index, scheduled, scheduled, 8, 2, 2, times[0], times[1], times, finished=times[1], server=server
    )


def rejected_record(index: int) -> RequestRecord:
    at = 0.5 * index
    return RequestRecord(index, at, at, 8, 2, finished=at + 0.01, rejected="http 429: the queue is full")


def fake_run(
    backend: str,
    rate: float | str = 2.0,
    latency: float = 1.0,
    *,
    seed: int = 0,
    num_prompts: int = 4,
    status: str = "complete",
    settings: dict[str, Any] | None = None,
    path: str = "run",
    records: int = 4,
    account: bool = False,
    server_stats: dict[str, Any] | None = None,
    rejected: int = 0,
    machine: dict[str, Any] | None = None,
    **workload: Any,
) -> Run:
    info: dict[str, Any] = {
        "status": status,
        "fingerprint": f"{backend} {settings} {rate} {seed} {num_prompts}",
        "model": "smollm2-135m",
        "backend": {
            "name": backend,
            "url": f"http://127.0.0.1:{next(PORTS)}",
            "settings": {"seed": 0} if settings is None else settings,
        },
        "workload": {
            "dataset": "synthetic",
            "num_prompts": num_prompts,
            "rate": rate,
            "seed": seed,
            "arrivals": "poisson",
            "prompts_fingerprint": f"{seed}-{num_prompts}",
            **workload,
        },
    }
    if server_stats is not None:
        info["server_stats"] = server_stats
    if machine is not None:
        info["machine"] = machine
    server = SERVER_REPORT if account else None
    gap = 1.0 / float(rate) if rate != "inf" else 0.0
    # Seeds send at other times, as a Poisson process does.
    due = [round(gap * (i + 1e-3 * seed * (i % 2)), 6) for i in range(records)]
    served = [record(i, latency, server, due[i]) for i in range(records - rejected)]
    not_served = [rejected_record(i) for i in range(records - rejected, records)]
    return Run(Path(path), info, (*served, *not_served))


@pytest.fixture
def make_run() -> Callable[..., Run]:
    return fake_run


@pytest.fixture
def server_stats() -> dict[str, Any]:
    return MEMORY


@pytest.fixture
def closed_loops() -> list[Run]:
    """Return runs of two backends with 1, 4 and 16 requests in flight.

    The JCT in seconds equals the concurrency; for ``ours`` it is half of that.
    """
    return [
        fake_run(
            name,
            "inf",
            base * workers,
            arrivals=f"closed concurrency={workers}",
            arrival_process={"name": "closed", "concurrency": workers},
            path=f"{name}-{workers}",
        )
        for name, base in (("theirs", 1.0), ("ours", 0.5))
        for workers in (4, 16, 1)
    ]


@pytest.fixture
def sweep() -> list[Run]:
    """Return runs of two backends, three rates and three seeds.

    ``ours`` has half of the latency of ``fastgen-fcfs``, within 5%.
    """
    return [
        fake_run(
            name,
            rate,
            base * rate * (1.0 + 0.1 * seed) * (1.0 + wobble * (-1) ** seed),
            seed=seed,
            account=name == "ours",
        )
        for name, base, wobble in (("fastgen-fcfs", 1.0, 0.0), ("ours", 0.5, 0.02))
        for rate in (0.5, 1.0, 2.0)
        for seed in range(3)
    ]
