"""Runs a command that ends when its parent process ends, on chosen cores.

    python -I fgbench/backends/die_with_parent.py PARENT CORES COMMAND...

On Linux the kernel sends SIGTERM to the command when the parent ends for any reason. So a benchmark that is
killed leaves no server running. (The parent is the thread that started this. Other systems send nothing.)

CORES are the numbers of the cores that the command and its children may use, such as ``0,1``; ``all``: no
change.

The command starts with the default actions of SIGINT and SIGTERM. A job that a script starts in the
background ignores SIGINT and would pass this on to the server, which SIGINT then could not stop.

This file imports only the standard library: it runs without the environment's PYTHONPATH.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ALL_CORES = "all"


def main() -> None:
    """Replace this process by the command, which then gets SIGTERM when the parent ends."""
    parent, cores, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if cores != ALL_CORES:
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    if os.getppid() != parent:  # the parent ended before prctl was called
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
