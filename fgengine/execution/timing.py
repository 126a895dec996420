"""How long a step takes on its device, and its results back on the host."""

from __future__ import annotations

import time
from typing import Protocol

import torch
from torch import Tensor


class Timer(Protocol):
    """Starts when it is made."""

    def stop(self) -> None: ...

    def wait(self) -> float:
        """Seconds from start to stop on the device, once all that was launched before the stop has ended."""
        ...


def timer_on(device: torch.device) -> Timer:
    return CudaTimer() if device.type == "cuda" else HostTimer()


class HostTimer:
    """Where calls return when they are done."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def stop(self) -> None:
        self._seconds = time.perf_counter() - self._began

    def wait(self) -> float:
        return self._seconds


class CudaTimer:
    """By events of the current stream: a step launched behind another is not charged with that one's time."""

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
    """Readable once a timer that is stopped after this call has been waited for."""
    if not tensor.is_cuda:
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
