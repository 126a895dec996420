"""Measures the load of other programs on the machine during a measurement.

Take a sample before and after, and compute the load between the two:

    before = sample()
    ...
    load = load_between(before, sample())
    load.is_busy, load.describe()   # True, "other programs took 0.93 cores (python3 0.92)"
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

BUSY_CORES = 0.1
"""Cores used by others. Above this limit, the machine counts as busy, and a measurement is marked."""
BUSY_SHARE = 0.02
"""The same limit as a share of all cores, if it is higher: many cores always have some background load."""
MEMORY_PRESSURE = Path("/proc/pressure/memory")
LOOK_SECONDS = 1.0
"""Seconds of one measurement in ``wait_until_quiet``."""
MAX_NAMED = 3
"""Maximum number of programs that a description names."""
WORTH_NAMING = 0.02
"""Minimum cores of a program that a description names."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Processor times since a fixed moment in the past, in seconds."""

    at: float
    """Time of the sample on the monotonic clock."""
    busy: float
    """Time of all programs on our cores."""
    stolen: float
    """Time of other virtual machines on our cores."""
    programs: Mapping[int, tuple[str, float]]
    """Name and time of each program that is not ours, by process id."""
    own: float
    """Time of our processes."""
    ours: frozenset[int]
    """Process ids of our processes."""
    memory_stalled: float | None
    """Time in which a program waited for memory; None if the system does not report it."""
    mhz: float | None
    """Clock frequency of the processor in MHz; None if the system does not report it."""


@dataclass(frozen=True, slots=True)
class MachineLoad:
    """The mean load between two samples.

    "Other" programs are neither the measured processes nor the measuring ones.
    """

    seconds: float
    """Seconds between the samples."""
    other_cores: float
    """Cores used by other programs."""
    stolen_cores: float
    """Cores used by other virtual machines."""
    memory_stalled_share: float | None
    """Share of the time in which a program waited for memory; None if the system does not report it."""
    mhz: float | None
    """Clock frequency of the processor in MHz at the end; None if the system does not report it."""
    programs: tuple[tuple[str, float], ...]
    """The busiest other programs: (name, cores used)."""

    @property
    def is_busy(self) -> bool:
        """Whether others used so many cores that a measurement must be marked."""
        return self.other_cores + self.stolen_cores > max(BUSY_CORES, BUSY_SHARE * len(our_cores()))

    def describe(self) -> str:
        """Return a clause, such as ``other programs took 0.93 cores (python3 0.92)``."""
        named = ", ".join(f"{name} {cores:.2f}" for name, cores in self.programs)
        clause = f"other programs took {self.other_cores:.2f} cores" + (f" ({named})" if named else "")
        if self.stolen_cores > WORTH_NAMING:
            clause += f" and other virtual machines {self.stolen_cores:.2f}"
        return clause


def our_cores() -> frozenset[int]:
    """Return the numbers of the cores on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def core_seconds() -> tuple[float, float]:
    """Return the seconds used on our cores since the boot: (all programs, other virtual machines)."""
    ours = our_cores()
    busy = stolen = 0.0
    for core, spent in enumerate(psutil.cpu_times(percpu=True)):
        if core in ours:
            busy += sum(getattr(spent, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
            stolen += getattr(spent, "steal", 0.0)
    return busy, stolen


def sample(own: Iterable[int] = ()) -> Sample:
    """Take a sample. It reads every process once, which takes about 20 us each.

    ``own``: ids of the processes that are measured or measuring, besides this one. Their children also count
    as own.
    """
    found = [one.info for one in psutil.process_iter(["pid", "ppid", "name", "cpu_times"])]
    ours = family([os.getpid(), *own], {one["pid"]: one["ppid"] for one in found})
    programs: dict[int, tuple[str, float]] = {}
    spent = 0.0
    for one in found:
        if (times := one["cpu_times"]) is None:  # no permission to read this process
            continue
        if one["pid"] in ours:
            # The times of children that have ended; running children have their own entries.
            spent += times.user + times.system + times.children_user + times.children_system
        else:
            programs[one["pid"]] = (one["name"] or "?", times.user + times.system)
    busy, stolen = core_seconds()
    return Sample(time.monotonic(), busy, stolen, programs, spent, frozenset(ours), memory_stalled(), mhz())


def load_between(before: Sample, after: Sample) -> MachineLoad:
    """Return the mean load between two samples."""
    seconds = max(after.at - before.at, 1e-6)
    others = max(0.0, (after.busy - before.busy) - (after.own - before.own))
    stalled = None
    if before.memory_stalled is not None and after.memory_stalled is not None:
        stalled = min(1.0, max(0.0, after.memory_stalled - before.memory_stalled) / seconds)
    taken = {
        pid: (name, (spent - before.programs.get(pid, (name, 0.0))[1]) / seconds)
        for pid, (name, spent) in after.programs.items()
    }
    busiest = sorted(taken.values(), key=lambda program: -program[1])[:MAX_NAMED]
    return MachineLoad(
        seconds,
        others / seconds,
        max(0.0, after.stolen - before.stolen) / seconds,
        stalled,
        after.mhz,
        tuple((name, cores) for name, cores in busiest if cores > WORTH_NAMING),
    )


def wait_until_quiet(patience: float, report: Callable[[str], None]) -> MachineLoad:
    """Measure the load for a second at a time, until the machine is quiet or ``patience`` seconds are over.

    ``report`` is called with a description of each second that was not quiet. Returns the load of the last
    second.
    """
    until = time.monotonic() + patience
    while True:
        before = sample()
        time.sleep(LOOK_SECONDS)
        load = load_between(before, sample())
        if not load.is_busy:
            return load
        report(load.describe())
        if time.monotonic() >= until:
            return load


def family(roots: Iterable[int], parents: Mapping[int, int]) -> set[int]:
    """Return the ids of the roots and all their descendants. ``parents`` maps a child's id to its parent."""
    ours = set(roots)
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    left = list(ours)
    while left:
        for child in children.get(left.pop(), ()):
            if child not in ours:
                ours.add(child)
                left.append(child)
    return ours


def memory_stalled() -> float | None:
    """Return the seconds since the boot in which a program waited for memory; None if not reported.

    Parses a line such as ``some avg10=0.00 avg60=0.00 avg300=0.00 total=1234``, in microseconds.
    """
    try:
        return int(MEMORY_PRESSURE.read_text().split("\n")[0].split("total=")[1]) / 1e6
    except (OSError, IndexError, ValueError):
        return None


def mhz() -> float | None:
    """Return the current clock frequency of the processor in MHz; None if the system does not report it."""
    try:
        frequency: Any = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError):
        return None
    return float(frequency.current) if frequency is not None and frequency.current else None
