"""How much of the system's memory this process can still take: what is free, within its control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

CGROUP_OF_PROCESS = Path("/proc/self/cgroup")
CGROUP_MOUNT = Path("/sys/fs/cgroup")


class HostMemory(NamedTuple):
    """Bytes, within the limits of the control groups (containers, systemd slices) around the process."""

    free: int
    """What can be taken without swapping; the page cache counts as free, since the kernel gives it back."""
    total: int


class _Version(NamedTuple):
    """The files of a memory controller."""

    limits: tuple[str, ...]
    usage: str
    cached: tuple[str, ...]
    """Keys of memory.stat: cached pages of files, which count as used but which the kernel gives back."""


_V2 = _Version(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))
_V1 = _Version(
    ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)


def host_memory() -> HostMemory:
    """Read now; it changes with whatever else runs."""
    system = psutil.virtual_memory()
    return within(HostMemory(system.available, system.total), limits())


def within(system: HostMemory, limits: Iterator[HostMemory]) -> HostMemory:
    """The least of the system's memory and of what each limit leaves, never below 0."""
    both = [system, *limits]
    return HostMemory(max(0, min(one.free for one in both)), min(one.total for one in both))


def limits(process: Path = CGROUP_OF_PROCESS, mount: Path = CGROUP_MOUNT) -> Iterator[HostMemory]:
    """What each control group around the process leaves of its own limit; nothing where there are none.

    Args:
        process: the file that names the process's groups, a line for each hierarchy.
        mount: where the hierarchies are mounted. In a container the group's path may name a folder of the
            host, while the container's own group is the mount itself: what is missing is passed over.
    """
    try:
        lines = process.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            yield from _around(mount, path, _V2)
        elif "memory" in controllers.split(","):
            yield from _around(mount / "memory", path, _V1)


def _around(root: Path, path: str, version: _Version) -> Iterator[HostMemory]:
    """The group and all groups around it: the limit of each binds."""
    folder = root / path.strip("/")
    for group in (folder, *folder.parents):
        if group.is_relative_to(root) and ".." not in group.parts:
            set_limits = [n for name in version.limits if (n := _number(group / name)) is not None]
            used = _number(group / version.usage)
            if set_limits and used is not None:
                limit = min(set_limits)
                yield HostMemory(max(0, limit - max(0, used - _cached(group, version.cached))), limit)


def _number(file: Path) -> int | None:
    """None where the file is missing or says "max", no limit."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _cached(group: Path, keys: tuple[str, ...]) -> int:
    try:
        pairs = [line.split() for line in (group / "memory.stat").read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] in keys and pair[1].isdigit())
