"""The processor cores that a started server may use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fgbench.spec.cores import cores_text


def own_cores() -> tuple[int, ...]:
    """Return the numbers of the cores that this process may use. Servers get them by default."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def check_cores(cores: Sequence[int]) -> None:
    """Raise ValueError unless a process can be pinned to all of ``cores`` here.

    They may lie outside of this process's own cores: the client can run on core 0 and the server on core 1.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(
            "--cores does not work on this system, which cannot pin processes to cores: leave it out"
        )
    with ThreadPoolExecutor(1) as pool:  # a thread has its own affinity, so this one keeps its cores
        missing = pool.submit(_unusable, tuple(cores)).result()
    if missing:
        raise ValueError(
            f"--cores {cores_text(cores)}: a process cannot use core {cores_text(missing)} here; fgbench may "
            f"use {cores_text(own_cores())}: choose from these"
        )


def _unusable(cores: tuple[int, ...]) -> list[int]:
    """Return the cores to which the kernel does not pin this thread. Changes the thread's cores."""
    return [core for core in cores if not _pinned_to(core)]


def _pinned_to(core: int) -> bool:
    """Pin this thread to the core. Returns whether the kernel did."""
    try:
        os.sched_setaffinity(0, (core,))
    except (OSError, ValueError, OverflowError):
        return False
    return True
