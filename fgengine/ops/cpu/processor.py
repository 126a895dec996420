"""Reads the processor's name and instruction sets from Linux."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_flags() -> frozenset[str]:
    """Return the CPU's instruction sets by their Linux names; empty if the system does not report them."""
    return frozenset(cpuinfo("flags").split())


def cpu_name() -> str:
    """Return the product name of the CPU."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def cpuinfo(key: str) -> str:
    """Return the first value of a key in /proc/cpuinfo; empty if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
