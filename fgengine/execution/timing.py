"""Measures the time of a step on its device, and copies results to the host."""

from __future__ import annotations

import time
from typing import Protocol

import torch
from torch import Tensor


class Timer(Protocol):
    """A timer that starts when it is created."""

    def stop(self) -> None:
        """Mark the end of the measured work. Does not wait for it."""
        ...

    def wait(self) -> float:
        """Wait for all work launched before ``stop``; return the seconds from start to stop on the device."""
        ...


def timer_on(device: torch.device) -> Timer:
    """Start a timer for work on the device."""
    return CudaTimer() if device.type == "cuda" else HostTimer()


class HostTimer:
    """A timer for devices on which calls return when their work is done."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def stop(self) -> None:
        self._seconds = time.perf_counter() - self._began

    def wait(self) -> float:
        return self._seconds


class CudaTimer:
    """A timer by events of the current CUDA stream. It excludes the time of steps launched before."""

    def __init__(self) -> None:
        self._begin = self._event()
        self._end = self._event()
        self._begin.record()

    def stop(self) -> None:
        self._end.record()

    def wait(self) -> float:
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1e3

    @staticmethod
    def _event() -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def to_host(tensor: Tensor) -> Tensor:
    """Start a copy to the host. Read the result only after ``wait`` of a timer stopped after this call."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
