"""What signals do to the program. It is imported before all else, so it imports only the standard library."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType

from fgbench.exit_codes import DONE, INTERRUPTED

STANDARD_OUTPUT = 1


def exit_on_signals(*, serves: bool) -> None:
    """Make signals end the program at once, without a traceback, while it is only importing.

    ``serves``: whether the verb is ``serve``. A server that has not started ends like one that drains without
    an open request. Until it handles signals itself, it has no process to stop.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop_serving if serves else _exit)
    if serves and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored after nohup
        signal.signal(signal.SIGHUP, _stop_serving)


def end_on_signals() -> None:
    """Make SIGINT and SIGTERM end every verb like Ctrl-C: its servers stop, and the terminal is restored.

    SIGINT is set too. A background job of a script ignores SIGINT, and then Python raises no
    KeyboardInterrupt. Only the main thread can set handlers; in another thread this does nothing.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)


def _stop_serving(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):  # print must not be called, because the signal may have stopped one
        os.write(STANDARD_OUTPUT, b"fgbench serve: stopping\n")
    os._exit(INTERRUPTED if number == signal.SIGINT else DONE)
