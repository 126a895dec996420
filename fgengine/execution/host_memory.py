"""How much host memory this process can still use: the system's free memory and its control group limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from fgengine.execution.control_groups import MOUNT, OF_PROCESS, groups, number


class HostMemory(NamedTuple):
    """Host memory in bytes, within the limits of the process's container or systemd slice."""

    free: int
    """Bytes available without swapping. The page cache counts as free, since the kernel releases it."""
    total: int


class _Files(NamedTuple):
    """File names of a memory controller."""

    limits: tuple[str, ...]
    usage: str
    cached: tuple[str, ...]
    """Keys of memory.stat: cached file pages, which count as used but which the kernel releases."""


_FILES = {
    2: _Files(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")),
    1: _Files(
        ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
    ),
}
"""Keyed by the version of the control groups."""


def host_memory() -> HostMemory:
    """Return the memory that is free now. It changes with the other programs on the machine."""
    system = psutil.virtual_memory()
    return within(HostMemory(system.available, system.total), limits())


def within(system: HostMemory, limits: Iterator[HostMemory]) -> HostMemory:
    """Return the minimum of the system's memory and of all limits, never below 0."""
    every = [system, *limits]
    return HostMemory(max(0, min(one.free for one in every)), min(one.total for one in every))


def limits(process: Path = OF_PROCESS, mount: Path = MOUNT) -> Iterator[HostMemory]:
    """Yield, for each control group of the process with a limit, the limit and what is left of it."""
    for group, version in groups("memory", process, mount):
        names = _FILES[version]
        set_limits = [n for name in names.limits if (n := number(group / name)) is not None]
        used = number(group / names.usage)
        if set_limits and used is not None:
            limit = min(set_limits)
            yield HostMemory(max(0, limit - max(0, used - _cached(group, names.cached))), limit)


def _cached(group: Path, keys: tuple[str, ...]) -> int:
    try:
        pairs = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] in keys and pair[1].isdigit())
