"""The interface of backends: a server started here, a running server at a URL, or a simulation.

All backends are used in the same way::

    backend.prepare(report)                 # once: slow preparations, such as downloading weights
    ready = backend.start(log, report)      # then, for each run
    outcome = backend.serve(workload, load, keep, display)
    backend.stop()
    backend.close()                         # after the last run
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fgbench.metrics.record import RequestRecord

if TYPE_CHECKING:
    from fgbench.client.state import LoadState
    from fgbench.spec.load import Load
    from fgbench.workload.workload import Workload

Report = Callable[[str], None]
"""Called with a line about something that takes a while."""
Keep = Callable[[RequestRecord], None]
"""Called with the record of each request when the request ends."""
SimulationProgress = Callable[[int, float], None]
"""Called with the number of ended requests of a simulation, and its virtual time in seconds."""


class Passing(str):
    """A reported line that the next line replaces, such as what a server does while it starts.

    A display shows it only for a moment, or seldom. An empty one ends the display of the last one.
    """

    __slots__ = ()


class BackendError(RuntimeError):
    """The system under test did not start or cannot be used. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ReadyServer:
    """A server that accepts requests."""

    url: str
    """``http://host:port``, without a slash at the end; empty for a simulation."""
    model: str
    """Name of the model in requests; empty if the server has no list of models."""
    vocab_size: int | None = None
    owner: str = ""
    """Owner of the model by the server's list: ``vllm``, ``sglang``, ...; empty if it names none."""
    max_tokens: int | None = None
    """Most prompt and output tokens of a request together; None: the server does not say."""
    shown_model: str = ""
    """Name of the model in run.json and tables; empty: ``model``."""
    started: Mapping[str, Any] | None = None
    """How the server was started, for run.json: command, environment, cores, version. None: it was not."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of serving a load."""

    status: Literal["complete", "interrupted", "failed"]
    """``failed``: the server died during the load."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Further entries of run.json: ``server_stats``, ``machine``, ``error``."""


class Display(Protocol):
    """Shows the progress of a run."""

    def report(self, line: str) -> None:
        """Show a line about something that takes a while. A ``Passing`` line is shown only for a moment."""
        ...

    def load(
        self, title: str, state: LoadState, stats_url: str | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Show ``state`` as it changes, until the context ends.

        ``stats_url``: URL of a fastgen server whose /stats can be shown too; None: there are no /stats.
        """
        ...

    def simulation(self, title: str, total: int) -> contextlib.AbstractContextManager[SimulationProgress]:
        """Show how many of ``total`` requests have ended, until the context ends."""
        ...


class Backend(Protocol):
    """A system under test."""

    @property
    def name(self) -> str:
        """Name in tables: ``fastgen``, ``fastgen-fcfs``, ..."""
        ...

    @property
    def policy(self) -> str | None:
        """Name of the scheduling policy; None: not known."""
        ...

    @property
    def model(self) -> str | None:
        """Name of the model; None: the model that the server has."""
        ...

    @property
    def url(self) -> str | None:
        """URL of a server that was already running; None for other backends."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Settings as plain JSON, for run.json and the run's fingerprint."""
        ...

    @property
    def endpoint(self) -> str | None:
        """Default API for requests; None for a simulation."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether it is a simulation, which uses a virtual clock and needs no warm-up."""
        ...

    @property
    def max_prompts(self) -> float:
        """Maximum requests of a run for which prompts are made and the time of each token is saved."""
        ...

    def prepare(self, report: Report) -> None:
        """Do the slow preparations that are needed once. Raises BackendError."""
        ...

    def share(self, log: Path) -> None:
        """Use one server, which logs to ``log``, for all further runs until ``close``."""
        ...

    def start(self, log: Path, report: Report) -> ReadyServer:
        """Start the server and return when it accepts requests.

        Raises BackendError if it does not start; then no process remains.
        """
        ...

    def serve(self, workload: Workload, load: Load, keep: Keep, display: Display) -> Outcome:
        """Send the load and wait until it ends.

        Raises:
            BackendError: no warm-up request was answered.
            KeyboardInterrupt: interrupted before the load began.
        """
        ...

    def stop(self) -> None:
        """End a run: stop the server, unless runs share it. Does nothing if no server runs."""
        ...

    def close(self) -> None:
        """Stop the server, also a shared one. Does nothing if no server runs."""
        ...


def identity_of(backend: Backend) -> dict[str, Any]:
    """Return all attributes of the backend that affect results, as plain JSON."""
    return {
        "name": backend.name,
        "policy": backend.policy,
        "settings": backend.settings,
        "model": backend.model,
        "url": backend.url,
    }
