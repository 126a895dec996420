"""How many threads compute: all, or fewer while other programs keep some of the cores busy.

A thread that shares its core with another program runs half of the time, in slices of milliseconds, and what
it was just computing is missing to all others meanwhile. So one such core costs half of the speed, however
many there are. It is better left to the other program, while at least half of the cores are free.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from fgengine.execution.control_groups import core_limit
from fgengine.machine_load import core_seconds, our_cores

INTERVAL = 0.25
"""Seconds between two looks at the machine, which take some 0.2 ms."""
MEMORY = 0.3
"""Seconds after which what was seen counts for a third."""
WORTH_LEAVING = 0.6
"""Of a core, taken by others, from which on it is left to them."""
MAX_WAITING = 0.8
"""Of the time, as far as it is believed."""


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Processor seconds since some moment in the past."""

    at: float
    """Of the clock."""
    all: float
    """Of all programs on our cores, and of other virtual machines on theirs."""
    own: float
    """Of this process."""
    running: float
    """Of this process's threads."""
    waiting: float
    """For which its threads could have run but had no core."""


def usage(tasks: Path = Path("/proc/self/task")) -> CpuUse | None:
    """None where the system does not say (it is not Linux)."""
    try:
        running, waiting = _scheduled(tasks)
    except (OSError, ValueError, IndexError):
        return None
    return CpuUse(time.monotonic(), sum(core_seconds()), time.process_time(), running, waiting)


def demand(before: CpuUse, after: CpuUse) -> float:
    """Cores that other programs would take if they got all they wanted.

    They wait as often as we do, where they share a core with us.
    """
    seconds = max(after.at - before.at, 1e-6)
    others = max(0.0, (after.all - before.all) - (after.own - before.own)) / seconds
    running, waiting = after.running - before.running, after.waiting - before.waiting
    share = waiting / (running + waiting) if running + waiting > 0.0 else 0.0
    return others / (1.0 - min(max(share, 0.0), MAX_WAITING))


def threads_for(demand: float, most: int, cores: int) -> int:
    """Threads that compute, of at most ``most``, where others want ``demand`` of the cores."""
    left = cores - math.floor(demand + 1.0 - WORTH_LEAVING)
    return min(most, left) if 2 * left >= cores else most


class Threads:
    """Sets torch's number of threads: that of our kernels too, and of all engines in this process."""

    _set_last: ClassVar[tuple[int, int]] = (0, 0)
    """What an engine of this process has set it to, and what it had been."""

    def __init__(
        self,
        read: Callable[[], CpuUse | None] = usage,
        set_threads: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        self._set_threads = set_threads
        self.most = self._now = torch.get_num_threads()
        if self.most == Threads._set_last[0]:
            self.most = Threads._set_last[1]
        if (limit := core_limit()) < self.most:
            # More threads than that would be stopped, all at once, for the rest of each tenth of a second.
            self.most = max(1, math.floor(limit))
        self._set(self.most)
        self._cores = max(self.most, len(our_cores()))
        self._read = read
        self._last = read() if self.most > 1 else None
        self._demand = 0.0

    def adapt(self) -> None:
        """Called before each step; looks at the machine now and then."""
        if self._last is None or time.monotonic() - self._last.at < INTERVAL:
            return
        now = self._read()
        if now is not None:
            newest = 1.0 - math.exp((self._last.at - now.at) / MEMORY)
            self._demand += newest * (demand(self._last, now) - self._demand)
            self._set(threads_for(self._demand, self.most, self._cores))
        self._last = now

    def _set(self, count: int) -> None:
        if count != self._now:
            self._now = count
            Threads._set_last = count, self.most
            self._set_threads(count)


def _scheduled(tasks: Path) -> tuple[float, float]:
    """Seconds for which this process's threads ran and waited; zeros where the kernel does not count them."""
    running = waiting = 0
    for task in tasks.iterdir():
        try:
            fields = (task / "schedstat").read_text().split()
        except OSError:  # the thread has ended, or the kernel has no such file
            continue
        running += int(fields[0])
        waiting += int(fields[1])
    return running / 1e9, waiting / 1e9
