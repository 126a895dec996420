"""What else the machine does while something is measured on it.

Sample before and after, and ask for what other programs took between the two:

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
"""Of others. Above it a measurement is not of this machine alone, and is marked."""
BUSY_SHARE = 0.02
"""Of all cores. On a machine with many cores, background programs always take a tenth of one core."""
MEMORY_PRESSURE = Path("/proc/pressure/memory")
LOOK_SECONDS = 1.0
MAX_NAMED = 3
WORTH_NAMING = 0.02


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of processors since some moment in the past."""

    at: float
    """Of the monotonic clock."""
    busy: float
    """On our cores, by all programs."""
    stolen: float
    """Of our cores, by other virtual machines."""
    programs: Mapping[int, tuple[str, float]]
    """Name and seconds of each program that is not ours, by process id."""
    own: float
    """By ours."""
    ours: frozenset[int]
    """Their process ids."""
    memory_stalled: float | None
    """In which a program waited for memory; None where the system does not say."""
    mhz: float | None


@dataclass(frozen=True, slots=True)
class MachineLoad:
    """Means over some time. Ours is what was measured, and who measured it."""

    seconds: float
    other_cores: float
    """That other programs took."""
    stolen_cores: float
    """That other virtual machines took."""
    memory_stalled_share: float | None
    """Of the time, in which a program waited for memory."""
    mhz: float | None
    programs: tuple[tuple[str, float], ...]
    """The busiest others, by name, with the cores they took."""

    @property
    def is_busy(self) -> bool:
        """Whether others took so much that a measurement must say so."""
        return self.other_cores + self.stolen_cores > max(BUSY_CORES, BUSY_SHARE * len(our_cores()))

    def describe(self) -> str:
        """A clause, such as ``other programs took 0.93 cores (python3 0.92)``."""
        named = ", ".join(f"{name} {cores:.2f}" for name, cores in self.programs)
        said = f"other programs took {self.other_cores:.2f} cores" + (f" ({named})" if named else "")
        if self.stolen_cores > WORTH_NAMING:
            said += f" and other virtual machines {self.stolen_cores:.2f}"
        return said


def our_cores() -> frozenset[int]:
    """On which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def core_seconds() -> tuple[float, float]:
    """On our cores since the machine was started: (by all programs, by other virtual machines)."""
    ours = our_cores()
    busy = stolen = 0.0
    for core, spent in enumerate(psutil.cpu_times(percpu=True)):
        if core in ours:
            busy += sum(getattr(spent, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
            stolen += getattr(spent, "steal", 0.0)
    return busy, stolen


def sample(own: Iterable[int] = ()) -> Sample:
    """Reads every process once, some 20 us each.

    ``own``: processes that are measured or measure, besides this one; all of their children are too.
    """
    found = [one.info for one in psutil.process_iter(["pid", "ppid", "name", "cpu_times"])]
    ours = family([os.getpid(), *own], {one["pid"]: one["ppid"] for one in found})
    programs: dict[int, tuple[str, float]] = {}
    spent = 0.0
    for one in found:
        if (times := one["cpu_times"]) is None:  # not ours to see
            continue
        if one["pid"] in ours:
            # What its children took counts for them until they have ended.
            spent += times.user + times.system + times.children_user + times.children_system
        else:
            programs[one["pid"]] = (one["name"] or "?", times.user + times.system)
    busy, stolen = core_seconds()
    return Sample(time.monotonic(), busy, stolen, programs, spent, frozenset(ours), memory_stalled(), mhz())


def load_between(before: Sample, after: Sample) -> MachineLoad:
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
    """Looks at the machine for a second at a time, until it is quiet or ``patience`` seconds are over.

    ``report`` is told the load of each second that was not quiet. Returns the load of the last second.
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
    """The processes and all below them."""
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
    """Seconds since the machine was started in which a program waited for memory.

    From a line such as ``some avg10=0.00 avg60=0.00 avg300=0.00 total=1234``, in microseconds.
    """
    try:
        return int(MEMORY_PRESSURE.read_text().split("\n")[0].split("total=")[1]) / 1e6
    except (OSError, IndexError, ValueError):
        return None


def mhz() -> float | None:
    """Of the processor, now; None where the system does not say."""
    try:
        frequency: Any = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError):
        return None
    return float(frequency.current) if frequency is not None and frequency.current else None
