"""Linux control groups of this process: the limits of its container or systemd slice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

OF_PROCESS = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")


class ControlGroup(NamedTuple):
    """One control group, as a folder of the mounted hierarchy."""

    folder: Path
    version: Literal[1, 2]


def groups(controller: str, process: Path = OF_PROCESS, mount: Path = MOUNT) -> Iterator[ControlGroup]:
    """Yield the process's group and all its parents, from the inside out. The limit of each one applies.

    Yields nothing if the system has no control groups.

    Args:
        controller: "memory" or "cpu".
        process: the file that names the process's groups, one line for each hierarchy.
        mount: where the hierarchies are mounted. In a container, the group's path may name a folder of the
            host; the container's own group is then the mount itself. So a yielded folder may not exist.
    """
    try:
        lines = process.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            yield from _around(mount, path, 2)
        elif controller in controllers.split(","):
            yield from _around(mount / controller, path, 1)


def _around(root: Path, path: str, version: Literal[1, 2]) -> Iterator[ControlGroup]:
    folder = root / path.strip("/")
    for group in (folder, *folder.parents):
        if group.is_relative_to(root) and ".." not in group.parts:
            yield ControlGroup(group, version)


def number(file: Path) -> int | None:
    """Return the integer in the file. Returns None if the file is missing or holds "max" (no limit)."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def core_limit(process: Path = OF_PROCESS, mount: Path = MOUNT) -> float:
    """Return the cores that the process may use on average (``docker run --cpus``); inf without a limit."""
    return min((_cores(group) for group in groups("cpu", process, mount)), default=math.inf)


def _cores(group: ControlGroup) -> float:
    if group.version == 1:
        quota, period = number(group.folder / "cpu.cfs_quota_us"), number(group.folder / "cpu.cfs_period_us")
    else:
        try:
            fields = (group.folder / "cpu.max").read_text().split()
            quota, period = int(fields[0]), int(fields[1])
        except (OSError, ValueError, IndexError):  # "max 100000" means no limit
            return math.inf
    return quota / period if quota is not None and quota > 0 and period else math.inf
