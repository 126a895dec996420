"""Runs a command that ends when its parent does.

    python -m fgbench.backends.die_with_parent PARENT COMMAND...

On Linux the kernel sends the command SIGTERM when the parent ends, however it ends, so a benchmark that is
killed leaves no server running. (The parent is the thread that started this. Other systems send nothing.)

The command starts with SIGINT and SIGTERM at their defaults. A job that a script puts into the background
inherits an ignored SIGINT and would pass it on: the server could not be asked to stop.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if os.getppid() != parent:  # it ended before the kernel knew
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
