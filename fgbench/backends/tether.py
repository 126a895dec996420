"""``python -m fgbench.backends.tether PARENT COMMAND...``: become COMMAND, tied to the parent's life.

On Linux the kernel then sends SIGTERM when the parent ends, however it ends: a benchmark that is killed
leaves no server behind. (The parent is the thread that started this; elsewhere nothing is tied.)

COMMAND starts with SIGINT and SIGTERM at their defaults. A job that a script puts into the background
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
    if os.getppid() != parent:  # it ended before the tie was made
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
