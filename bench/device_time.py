"""Measures with torch's profiler what runs on a device, and for how long."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

MAX_KERNELS = 15
"""Maximum number of kernels that are listed."""


class Span(NamedTuple):
    """Start and end of a kernel or copy (on a CPU: of an operation with all its parts), in microseconds."""

    name: str
    start: float
    end: float


def spans_of(work: Callable[[], object], times: int, device: torch.device) -> list[Span]:
    """Call ``work`` ``times`` times; return what ran on the device."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as recorded:
        for _ in range(times):
            work()
        if on_gpu:
            torch.cuda.synchronize(device)
    return [
        Span(event.name, event.time_range.start, event.time_range.end)
        for event in recorded.events() or ()
        if (event.device_type != DeviceType.CPU if on_gpu else event.cpu_parent is None)
    ]


def busy_seconds(spans: Iterable[Span]) -> float:
    """Return the seconds in which at least one span runs. Spans on two streams that overlap count once."""
    total, until = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
    return total / 1e6


def kernels_of(spans: Iterable[Span], times: int) -> list[dict[str, Any]]:
    """Return the seconds and calls of each kernel in one of the ``times`` calls, the longest first."""
    seconds: dict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for span in spans:
        seconds[span.name] += (span.end - span.start) / 1e6
        calls[span.name] += 1
    total = max(sum(seconds.values()), 1e-12)
    return [
        {
            "kernel": name,
            "seconds": seconds[name] / times,
            "calls": round(calls[name] / times, 2),
            "share": seconds[name] / total,
        }
        for name in sorted(seconds, key=lambda name: -seconds[name])[:MAX_KERNELS]
    ]
