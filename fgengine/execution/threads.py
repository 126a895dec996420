"""Picks the number of compute threads: all, or fewer while other programs use some of the cores.

A thread that shares its core with another program runs only half of the time, in slices of milliseconds. All
other threads then wait for its results. So a single shared core halves the speed, however many cores there
are. It is better to leave this core to the other program, if at least half of the cores remain free.
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
"""Seconds between two readings of the machine's load. A reading takes about 0.2 ms."""
MEMORY = 0.3
"""Time constant of the moving average, in seconds: after this time, a reading weighs a third."""
WORTH_LEAVING = 0.6
"""If other programs use at least this share of a core, the core is left to them."""
MAX_WAITING = 0.8
"""Upper bound of the measured share of time in which our threads wait for a core."""


@dataclass(frozen=True, slots=True)
class CpuUse:
    """Processor time used since a fixed moment in the past, in seconds."""

    at: float
    """Time of the reading on the monotonic clock."""
    all: float
    """Time of all programs on our cores, and of other virtual machines on these cores."""
    own: float
    """Time of this process."""
    running: float
    """Time in which this process's threads ran."""
    waiting: float
    """Time in which its threads could have run but had no core."""


def usage(tasks: Path = Path("/proc/self/task")) -> CpuUse | None:
    """Read the processor times. Returns None if the system does not report them (it is not Linux)."""
    try:
        running, waiting = _scheduled(tasks)
    except (OSError, ValueError, IndexError):
        return None
    return CpuUse(time.monotonic(), sum(core_seconds()), time.process_time(), running, waiting)


def demand(before: CpuUse, after: CpuUse) -> float:
    """Return the number of cores that other programs would use without competition.

    A program that shares a core with us waits for it as often as we do.
    """
    seconds = max(after.at - before.at, 1e-6)
    others = max(0.0, (after.all - before.all) - (after.own - before.own)) / seconds
    running, waiting = after.running - before.running, after.waiting - before.waiting
    share = waiting / (running + waiting) if running + waiting > 0.0 else 0.0
    return others / (1.0 - min(max(share, 0.0), MAX_WAITING))


def threads_for(demand: float, limit: int, cores: int) -> int:
    """Return the number of compute threads, up to ``limit``, if others want ``demand`` of the ``cores``."""
    left = cores - math.floor(demand + 1.0 - WORTH_LEAVING)
    return min(limit, left) if 2 * left >= cores else limit


class Threads:
    """Adapts torch's number of threads to the load of the machine.

    The number also applies to our kernels, and to all engines in this process.
    """

    _set_last: ClassVar[tuple[int, int]] = (0, 0)
    """The number that an engine of this process set last, and that engine's maximum."""

    def __init__(
        self,
        read: Callable[[], CpuUse | None] = usage,
        set_threads: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        self._set_threads = set_threads
        self.max_threads = self._now = torch.get_num_threads()
        if self.max_threads == Threads._set_last[0]:
            self.max_threads = Threads._set_last[1]
        if (limit := core_limit()) < self.max_threads:
            # With more threads, Linux would stop all of them for the rest of each tenth of a second.
            self.max_threads = max(1, math.floor(limit))
        self._set(self.max_threads)
        self._cores = max(self.max_threads, len(our_cores()))
        self._read = read
        self._last = read() if self.max_threads > 1 else None
        self._demand = 0.0

    def adapt(self) -> None:
        """Adapt the number of threads. Call it before each step; it reads the load every ``INTERVAL``."""
        if self._last is None or time.monotonic() - self._last.at < INTERVAL:
            return
        now = self._read()
        if now is not None:
            weight = 1.0 - math.exp((self._last.at - now.at) / MEMORY)
            self._demand += weight * (demand(self._last, now) - self._demand)
            self._set(threads_for(self._demand, self.max_threads, self._cores))
        self._last = now

    def _set(self, count: int) -> None:
        if count != self._now:
            self._now = count
            Threads._set_last = count, self.max_threads
            self._set_threads(count)


def _scheduled(tasks: Path) -> tuple[float, float]:
    """Return the seconds for which this process's threads ran and waited; zeros if the kernel counts none."""
    running = waiting = 0
    for task in tasks.iterdir():
        try:
            fields = (task / "schedstat").read_text().split()
        except OSError:  # the thread has ended, or the kernel has no such file
            continue
        running += int(fields[0])
        waiting += int(fields[1])
    return running / 1e9, waiting / 1e9
