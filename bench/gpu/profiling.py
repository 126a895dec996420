"""Where a step's time goes on the device: its kernels by time, and the share in which none runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

MOST_KERNELS = 15
NAME_LENGTH = 100


class Span(NamedTuple):
    """A kernel (on a CPU: an operation with all its parts) as it ran; microseconds."""

    name: str
    start: float
    end: float


def spans_of(work: Callable[[], object], times: int, device: torch.device) -> list[Span]:
    """What ran on the device meanwhile, copies included."""
    on_gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    if on_gpu:
        torch.cuda.synchronize(device)
    with profile(activities=[activity]) as recorded:
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
    """Time in which at least one of them runs: those side by side on two streams count once."""
    total, until = 0.0, float("-inf")
    for span in sorted(spans, key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, until))
        until = max(until, span.end)
    return total / 1e6


def kernels_of(spans: Iterable[Span], times: int) -> list[dict[str, Any]]:
    """By name, the longest first: seconds and calls of one of the ``times``."""
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for span in spans:
        seconds[span.name] += (span.end - span.start) / 1e6
        calls[span.name] += 1
    longest = sorted(seconds, key=lambda name: -seconds[name])[:MOST_KERNELS]
    return [
        {
            "kernel": name[:NAME_LENGTH],
            "seconds": seconds[name] / times,
            "calls": round(calls[name] / times, 2),
            "share": seconds[name] / max(sum(seconds.values()), 1e-12),
        }
        for name in longest
    ]


def breakdown(work: Callable[[], object], times: int, device: torch.device) -> dict[str, Any]:
    """Of one of ``times`` repeats: seconds in which the device is busy, and its kernels."""
    spans = spans_of(work, times, device)
    return {"busy_seconds": busy_seconds(spans) / times, "kernels": kernels_of(spans, times)}


def lines_of(found: dict[str, Any]) -> list[str]:
    """To print."""
    return [
        f"    {one['seconds'] * 1e3:8.3f} ms {one['share']:6.1%} x{one['calls']:<6g} {one['kernel']}"
        for one in found["kernels"]
    ]
