"""Whether requests are left at a server, and waiting until none is."""

from __future__ import annotations

import time
from collections.abc import Callable

from fgbench.backends.backend import BackendError, Report
from fgbench.backends.probe import POLL_SECONDS, NotReady, SilentServer, StatsError, read_metrics, read_stats

DRAIN_SECONDS = 60.0
"""For what an interrupted or failed load left at the server."""
QUIET_SECONDS = 1.0
"""A wait as short as this is not worth a word."""
SAY_SECONDS = 10.0
"""Between two words of a wait."""
STATES = ("running", "waiting", "swapped")


def ask_requests(url: str) -> int | None:
    """How many requests are at the server, waiting or running; None where it does not say: ours and vLLM do.

    Raises SilentServer where nobody answers, which a server that is busy with a long step may not either.
    """
    for read in (read_stats, read_metrics):
        try:
            stats = read(url)
        except NotReady:
            continue
        except SilentServer:
            raise
        except StatsError:
            continue
        told = [stats[state] for state in STATES if state in stats]
        return int(sum(told)) if told else None
    return None


def wait_until_idle(
    url: str, *, timeout: float, report: Report = lambda line: None, alive: Callable[[], bool] = lambda: True
) -> None:
    """Until no request is left at the server; at once where it does not say. ``report`` hears of a wait that
    takes longer than ``QUIET_SECONDS``.

    Raises BackendError when the process behind it ends, or after ``timeout`` seconds; SilentServer where it
    does not answer then.
    """
    began = time.monotonic()
    say = began + QUIET_SECONDS
    while True:
        try:
            left = ask_requests(url)
        except SilentServer:
            left, waiting = None, f"waiting for {url} to answer"
        else:
            if not left:
                return
            waiting = f"waiting for {_requests(left)} at {url} to end"
        if not alive():
            raise BackendError("the server ended while its last requests were awaited")
        now = time.monotonic()
        if now > began + timeout:
            if left is None:
                raise SilentServer(f"the server at {url} has not answered for {timeout:g} s")
            raise BackendError(f"the server at {url} still has {_requests(left)} after {timeout:g} s")
        if now >= say:
            report(f"{waiting}, at most {began + timeout - now:.0f} s")
            say = now + SAY_SECONDS
        time.sleep(POLL_SECONDS)


def _requests(count: int) -> str:
    return f"{count:,} request{'' if count == 1 else 's'}"
