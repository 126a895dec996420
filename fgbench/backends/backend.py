"""A system under test: how it is started, asked what it serves, and stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Report = Callable[[str], None]


class BackendError(RuntimeError):
    """The system under test did not start or cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Served:
    """A server that is ready."""

    url: str
    """``http://host:port``, no slash at the end."""
    model: str
    """The name to ask for; empty where the server has no list of models."""
    vocab_size: int | None = None


class Backend(Protocol):
    @property
    def name(self) -> str:
        """What tables call it: ``fastgen``, ``fastgen-fcfs``, ..."""
        ...

    @property
    def policy(self) -> str | None: ...

    @property
    def model(self) -> str | None:
        """None: whatever the server has."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Plain JSON; goes into run.json and into the run's fingerprint."""
        ...

    def start(self, log: Path, report: Report) -> Served:
        """Returns when requests can be sent. Raises BackendError; then nothing is left running."""
        ...

    def alive(self) -> bool: ...

    def last_words(self) -> str:
        """The end of its log, for a message about its death; may be empty."""
        ...

    def stop(self) -> None:
        """Leaves no process behind; harmless when there is none."""
        ...
