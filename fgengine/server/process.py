"""Starts and stops the engine's process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO

from fgengine.child import ending_signals_blocked, python_module
from fgengine.config import EngineConfig
from fgengine.server.client import EngineClient

WORKER = python_module("fgengine.server.worker")
STANDARD_ERROR = 2
MAX_LINES, MAX_CHARACTERS = 3, 200
"""Limits of the process's last output that is quoted when it ends unexpectedly. The log has all output."""
PATIENCE_SECONDS = 2.0
"""Seconds that the process may take to end by itself before it is killed."""


class EngineProcess(EngineClient):
    """An ``EngineClient`` that also starts and stops the engine's process."""

    def __init__(
        self, report: Callable[[str], None] = lambda text: None, *, command: Sequence[str] = WORKER
    ) -> None:
        super().__init__(report)
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._last_lines: LastLines | None = None

    async def start(self, config: EngineConfig) -> None:
        """Start the process. It continues to load the model after this returns."""
        ours, theirs = socket.socketpair()
        # On a terminal, the engine draws its own progress there, and the user can read its last output.
        errors = None if sys.stderr.isatty() else subprocess.PIPE
        with theirs, ending_signals_blocked():
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=errors,
            )
        if self._process.stderr is not None:
            self._last_lines = LastLines(self._process.stderr)
        ours.setblocking(False)
        await self.connect(ours, config)

    async def stop(self) -> None:
        """Close the channel and wait for the process to end; kill it if it does not end in time."""
        await self.close()
        if self._process is None:
            return
        try:
            await asyncio.to_thread(self._process.wait, PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            await asyncio.to_thread(self._process.wait)

    async def replace(self) -> None:
        """End the process at once; open requests fail. Then ``start`` can start another one."""
        if self.state != "broken":
            self.fail(self.message)
        self.kill()
        await self.close()
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()

    async def _ending(self) -> str:
        assert self._process is not None
        try:
            status = await asyncio.to_thread(self._process.wait, PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return await super()._ending()
        output = "" if self._last_lines is None else await asyncio.to_thread(self._last_lines.text)
        return describe_exit(status) + (f"; its last output: {output}" if output else "")


class LastLines:
    """Copies a process's standard error to ours and remembers its last lines."""

    def __init__(self, source: IO[bytes]) -> None:
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._thread = threading.Thread(target=self._pass_on, args=(source,), daemon=True)
        self._thread.start()

    def text(self) -> str:
        """Return the last lines, after the process has ended."""
        self._thread.join(PATIENCE_SECONDS)
        return " / ".join(line for line in self._lines if line)

    def _pass_on(self, source: IO[bytes]) -> None:
        with source:
            for line in source:
                with contextlib.suppress(OSError):
                    os.write(STANDARD_ERROR, line)
                self._lines.append(line[:MAX_CHARACTERS].decode("utf-8", "replace").rstrip())


def describe_exit(status: int) -> str:
    """Describe an exit status of ``subprocess`` in words. A negative status is the signal that ended the
    process.

    >>> describe_exit(1)
    'its process ended with exit status 1'
    """
    if status >= 0:
        return f"its process ended with exit status {status}"
    if status == -signal.SIGKILL:
        return "its process was killed (signal 9, SIGKILL); the kernel does this when memory runs out"
    try:
        name = f", {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        name = ""
    return f"its process was ended by signal {-status}{name}"
