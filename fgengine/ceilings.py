"""Measures the maximum speed of a device: bytes read per second and FLOP per second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from fgengine.physics import Ceilings

SECONDS = 0.4
"""Seconds of measurement for each kind of work. The best repeat counts, because other load only slows it."""
LARGEST_BUFFER = {"cpu": 512 * 1024**2, "cuda": 2 * 1024**3}
"""Maximum bytes of the buffer to read. For a GPU, it is many times the size of the cache, and reading it
takes so long (0.7 ms at 3 TB/s) that the launch time does not matter."""
MATRIX = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of a matrix: enough work for every core, but well below a second."""
GROUP_SECONDS = 0.02
"""Seconds of a group of repeats on a GPU. Launches within a group overlap, as they do in a step."""
MAX_GROUPED = 1000
"""Maximum number of repeats in a group."""


def measure_ceilings(device: torch.device, dtype: torch.dtype, weight_bytes: int) -> Ceilings:
    """Measure the maximum speeds of a device.

    ``weight_bytes`` is the size of the buffer to read on a CPU: a model that fits into a cache is read at the
    speed of the cache.
    """
    if device.type == "cuda":
        return Ceilings(_bytes_per_second_on_gpu(device, dtype), _flops_per_second(device, dtype))
    size = min(max(weight_bytes, 1024**2), LARGEST_BUFFER[device.type])
    buffer = torch.zeros(size // 8, dtype=torch.int64, device=device)
    reading = _best_seconds(lambda: buffer.sum(), device)
    return Ceilings(buffer.nbytes / reading, _flops_per_second(device, dtype))


def _bytes_per_second_on_gpu(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best result of three kernels: maximum of all elements, matrix times vector, and copy.

    Several kernels are tried, because a single one may be slow on some GPUs. The copy counts reads and
    writes.
    """
    size = min(LARGEST_BUFFER["cuda"], torch.cuda.mem_get_info(device)[0] // 2)
    rows = max(2, size // (MATRIX["cuda"] * dtype.itemsize))
    # Use random numbers: zeros need less power, and a GPU below its power limit runs faster.
    matrix = torch.randn(rows, MATRIX["cuda"], dtype=dtype, device=device)
    vector = torch.randn(MATRIX["cuda"], dtype=dtype, device=device)
    words = matrix.view(-1).view(torch.int32)
    low, high = matrix[: rows // 2], matrix[rows - rows // 2 :]
    ways: tuple[tuple[Callable[[], object], int], ...] = (
        (lambda: words.amax(), matrix.nbytes),
        (lambda: torch.mv(matrix, vector), matrix.nbytes),
        (lambda: low.copy_(high), low.nbytes + high.nbytes),
    )
    return max(num_bytes / _best_seconds(work, device) for work, num_bytes in ways)


def _flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    n = MATRIX[device.type]
    left, right = _matrix(n, device, dtype), _matrix(n, device, dtype)
    out = torch.empty_like(left)
    return 2.0 * n**3 / _best_seconds(lambda: torch.mm(left, right, out=out), device)


def _matrix(n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    if device.type == "cuda":
        return torch.randn(n, n, dtype=dtype, device=device)
    return torch.full((n, n), 0.01, dtype=dtype, device=device)


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Repeat the work for ``SECONDS``, at least three times after a warm-up; return the minimum seconds."""
    timed = _gpu_seconds(work, device) if device.type == "cuda" else _seconds(work)
    best = float("inf")
    began, repeats = time.perf_counter(), 0
    while repeats < 3 or time.perf_counter() - began < SECONDS:
        best = min(best, timed())
        repeats += 1
    return best


def _seconds(work: Callable[[], object]) -> Callable[[], float]:
    def timed() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    work()
    return timed


def _gpu_seconds(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Return a timer by GPU events: the mean seconds over a group of repeats launched one after the other."""

    def group(times: int) -> float:
        with torch.cuda.device(device):
            begins, ends = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begins.record()
            for _ in range(times):
                work()
            ends.record()
            ends.synchronize()
        return float(begins.elapsed_time(ends)) / 1e3 / times

    group(1)
    alone = group(3)
    times = max(1, min(MAX_GROUPED, round(GROUP_SECONDS / max(alone, 1e-9))))
    return lambda: group(times)
