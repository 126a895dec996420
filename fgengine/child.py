"""Child processes: the command that runs a module of the project in one, and the signals that end a program.

The child imports nothing from the working folder. With ``python -m``, the working folder is first in
``sys.path``: a file ``random.py`` in it would replace the module of the standard library (CWE-427).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

RUN_MODULE = (
    "import sys; sys.path[:1] == [''] and sys.path.pop(0); import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
"""Code for ``python -c RUN_MODULE NAME ARGUMENTS``, which works like ``python -m NAME ARGUMENTS``."""


def python_module(name: str, *arguments: str) -> list[str]:
    """Return the command that runs a module like ``python -m``, without the working folder in ``sys.path``.

    subprocess.run(python_module("fgbench", "models", "pull", "smollm2-135m"))
    """
    safe_path = ["-P"] if getattr(sys.flags, "safe_path", False) else []
    return [sys.executable, *safe_path, "-c", RUN_MODULE, name, *arguments]


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask a program to end. Ctrl-C, a closed terminal and systemd send them to its children too."""


@contextmanager
def ending_signals_blocked() -> Iterator[None]:
    """Start the children of this block with ``ENDING`` blocked, until they ``leave_ending_to_parent``."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_ending_to_parent() -> None:
    """Ignore ``ENDING`` in this process: its parent reacts to them, and still needs it to finish its work."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
