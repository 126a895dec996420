"""How much of the system's memory this process can still take: what is free, within its control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from fgengine.execution.control_groups import MOUNT, OF_PROCESS, groups, number


class HostMemory(NamedTuple):
    """Bytes, within the limits of the control groups (containers, systemd slices) around the process."""

    free: int
    """What can be taken without swapping; the page cache counts as free, since the kernel gives it back."""
    total: int


class _Files(NamedTuple):
    """The files of a memory controller."""

    limits: tuple[str, ...]
    usage: str
    cached: tuple[str, ...]
    """Keys of memory.stat: cached pages of files, which count as used but which the kernel gives back."""


_FILES = {
    2: _Files(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")),
    1: _Files(
        ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
    ),
}
"""By the version of the control groups."""


def host_memory() -> HostMemory:
    """Read now; it changes with whatever else runs."""
    system = psutil.virtual_memory()
    return within(HostMemory(system.available, system.total), limits())


def within(system: HostMemory, limits: Iterator[HostMemory]) -> HostMemory:
    """The least of the system's memory and of what each limit leaves, never below 0."""
    both = [system, *limits]
    return HostMemory(max(0, min(one.free for one in both)), min(one.total for one in both))


def limits(process: Path = OF_PROCESS, mount: Path = MOUNT) -> Iterator[HostMemory]:
    """What each control group around the process leaves of its own limit; nothing where there are none."""
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
