"""Builds the command that runs a module of the project in a child process, and starts children quietly.

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


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Start the children of this block with SIGINT blocked.

    Ctrl-C in a terminal reaches them too, also while they import. Then they would print a traceback, before
    they can ignore the signal.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
