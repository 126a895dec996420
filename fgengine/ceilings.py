"""Measures what the device can do at best: bytes read and multiply-adds a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from fgengine.physics import Ceilings

SECONDS = 0.4
"""Spent on each of the two; the best repeat counts, since anything else on the machine only slows it."""
LARGEST_BUFFER = 512 * 1024**2
MATRIX = {"cpu": 2048, "cuda": 8192}
"""Rows and columns: large enough to keep every core busy, small enough to take well under a second."""


def measure_ceilings(device: torch.device, dtype: torch.dtype, weight_bytes: int) -> Ceilings:
    """``weight_bytes``: size of the buffer to read, since a model that fits a cache is read at its speed."""
    size = min(max(weight_bytes, 1024**2), LARGEST_BUFFER)
    buffer = torch.zeros(size // 8, dtype=torch.int64, device=device)
    n = MATRIX[device.type]
    left = torch.full((n, n), 0.01, dtype=dtype, device=device)
    right = torch.full((n, n), 0.01, dtype=dtype, device=device)
    reading = _best_seconds(lambda: buffer.sum(), device)
    multiplying = _best_seconds(lambda: left @ right, device)
    return Ceilings(buffer.nbytes / reading, 2.0 * n**3 / multiplying)


def _best_seconds(work: Callable[[], torch.Tensor], device: torch.device) -> float:
    """Seconds of the fastest of the repeats that fit ``SECONDS``, three at least, after one to warm up."""
    work()
    best = float("inf")
    began, repeats = time.perf_counter(), 0
    while repeats < 3 or time.perf_counter() - began < SECONDS:
        _synchronize(device)
        start = time.perf_counter()
        work()
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
        repeats += 1
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
