"""Starts the engine's process and makes sure that it ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

from fgengine.config import EngineConfig
from fgengine.server.client import EngineClient

WORKER = (sys.executable, "-m", "fgengine.server.worker")
PATIENCE_SECONDS = 2.0
"""How long the process may take to end by itself; then it is killed."""


class EngineProcess(EngineClient):
    """An ``EngineClient`` with the process at the other end, which it starts and stops."""

    def __init__(
        self, report: Callable[[str], None] = lambda text: None, *, command: Sequence[str] = WORKER
    ) -> None:
        super().__init__(report)
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, config: EngineConfig) -> None:
        """Start the process; loading goes on in it after this returns."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        ours.setblocking(False)
        await self.connect(ours, config)

    async def stop(self) -> None:
        """Close the channel, wait for the process to end, kill it if it does not. Never leaves it behind."""
        await self.close()
        if self._process is None:
            return
        try:
            await asyncio.to_thread(self._process.wait, PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
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
        return describe_exit(status)


def describe_exit(status: int) -> str:
    """An exit status, as ``subprocess`` gives it, in words: negative is the signal that ended the process."""
    if status >= 0:
        return f"its process ended with exit status {status}"
    if status == -signal.SIGKILL:
        return "its process was killed (signal 9, SIGKILL); the kernel does this when memory runs out"
    try:
        name = f", {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        name = ""
    return f"its process was ended by signal {-status}{name}"
