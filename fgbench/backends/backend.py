"""What is measured: a server started here, a server at a URL, a simulation. All are used in the same way:

backend.prepare(report)                 # once: what takes long, such as pulling weights
ready = backend.start(log, report)      # then, for each run
outcome = backend.serve(workload, load, keep, display)
backend.stop()
backend.close()                         # after the last run
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fgbench.metrics.record import RequestRecord

if TYPE_CHECKING:
    from fgbench.client.state import LoadState
    from fgbench.spec.load import Load
    from fgbench.workload.workload import Workload

Report = Callable[[str], None]
Keep = Callable[[RequestRecord], None]
"""Called with the record of each request as it ends."""
SimulationProgress = Callable[[int, float], None]
"""Takes how many requests of a simulation have ended, and its seconds."""


class BackendError(RuntimeError):
    """The system under test did not start or cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ReadyServer:
    """What is served, once requests can be sent."""

    url: str
    """``http://host:port``, no slash at the end; empty for a simulation."""
    model: str
    """The name to ask for; empty where the server has no list of models."""
    vocab_size: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a load ended."""

    status: Literal["complete", "interrupted", "failed"]
    """``failed``: the server died under it."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What else run.json says: ``server_stats``, ``machine``, ``error``."""


class Display(Protocol):
    def report(self, line: str) -> None:
        """Something was begun that takes a while."""
        ...

    def load(
        self, title: str, state: LoadState, stats_url: str | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Shows ``state`` as it changes, until the context ends. ``stats_url``: where a server of ours is,
        whose own figures may be asked for and shown too."""
        ...

    def simulation(self, title: str, total: int) -> contextlib.AbstractContextManager[SimulationProgress]:
        """Shows how many of ``total`` requests have ended, until the context ends."""
        ...


class Backend(Protocol):
    @property
    def name(self) -> str:
        """In tables: ``fastgen``, ``fastgen-fcfs``, ..."""
        ...

    @property
    def policy(self) -> str | None:
        """None: not known."""
        ...

    @property
    def model(self) -> str | None:
        """None: whatever the server has."""
        ...

    @property
    def url(self) -> str | None:
        """Of a server that runs already; None for others."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Plain JSON; goes into run.json and into the run's fingerprint."""
        ...

    @property
    def endpoint(self) -> str | None:
        """How it is spoken to unless the user says otherwise; None for a simulation."""
        ...

    @property
    def simulated(self) -> bool:
        """It has no clock of its own and needs no warm-up."""
        ...

    @property
    def most_prompts(self) -> float:
        """Requests up to which their prompts are made, and the time of each token is kept."""
        ...

    def prepare(self, report: Report) -> None:
        """What has to be done once, and takes long. Raises BackendError."""
        ...

    def share(self, log: Path) -> None:
        """All further runs have one server, which logs to ``log``, until ``close``."""
        ...

    def start(self, log: Path, report: Report) -> ReadyServer:
        """Returns when requests can be sent. Raises BackendError; then nothing is left running."""
        ...

    def serve(self, workload: Workload, load: Load, keep: Keep, display: Display) -> Outcome:
        """Sends the load and waits for its end.

        Raises:
            BackendError: no warm-up request was answered.
            KeyboardInterrupt: before the load began.
        """
        ...

    def stop(self) -> None:
        """A run has ended. Leaves no process behind that is not shared; harmless when there is none."""
        ...

    def close(self) -> None:
        """Leaves no process behind at all; harmless when there is none."""
        ...


def identity_of(backend: Backend) -> dict[str, Any]:
    """All of it that decides a result, as plain JSON."""
    return {
        "name": backend.name,
        "policy": backend.policy,
        "settings": backend.settings,
        "model": backend.model,
        "url": backend.url,
    }
