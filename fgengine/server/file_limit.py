"""How many connections the limit of open files allows."""

from __future__ import annotations

import contextlib
import resource

from fgengine.server.connections import CLOSING_CONNECTIONS

OTHER_FILES = 96
"""Open files that are no connections: the engine's channel, the model's files, libraries, the log."""
DEFAULT_CONNECTIONS = 16_384
"""The default if the limit of open files allows it. Each idle connection takes about 10 KB of memory."""


def raise_file_limit() -> int:
    """Raise the limit of open files as far as a user may, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, 2**20)
    with contextlib.suppress(ValueError, OSError):  # some systems have a lower limit of their own
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def connection_limit(asked: int | None, files: int) -> int:
    """Return the limit of connections: the one asked for, else as many as ``files`` open files allow.

    Raises ValueError if ``files`` are too few.

    >>> connection_limit(None, 1024)
    832
    """
    others = CLOSING_CONNECTIONS + OTHER_FILES
    needed = others + (1 if asked is None else asked)
    if needed > files:
        what = "the server" if asked is None else f"--max-connections {asked}"
        raise ValueError(f"{what} needs {needed} open files, but the limit is {files} (ulimit -n)")
    return min(DEFAULT_CONNECTIONS, files - others) if asked is None else asked
