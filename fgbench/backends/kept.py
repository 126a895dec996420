"""One started server for one run after another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fgbench.backends.backend import Backend, BackendError, Report, Served
from fgbench.backends.draining import DRAIN_SECONDS, wait_until_idle


class Kept:
    """``backend``, started when a run first asks for it and stopped only by ``close``.

    A further run gets the same server once no request is left at it, or a new one where it has died.
    """

    def __init__(self, backend: Backend, log: Path) -> None:
        """``log``: the server's output, of all runs; theirs do not get one each."""
        self._backend = backend
        self._log = log
        self._served: Served | None = None

    @property
    def name(self) -> str:
        return self._backend.name

    @property
    def policy(self) -> str | None:
        return self._backend.policy

    @property
    def model(self) -> str | None:
        return self._backend.model

    @property
    def settings(self) -> dict[str, Any]:
        return self._backend.settings

    def start(self, log: Path, report: Report) -> Served:
        if self._served is not None and self._backend.alive():
            try:
                wait_until_idle(
                    self._served.url, timeout=DRAIN_SECONDS, report=report, alive=self._backend.alive
                )
                return self._served
            except BackendError as error:
                report(f"{error}: starting anew")
        self.close()
        self._served = self._backend.start(self._log, report)
        return self._served

    def alive(self) -> bool:
        return self._backend.alive()

    def last_words(self) -> str:
        return self._backend.last_words()

    def stop(self) -> None:
        """Of a run that has ended; the next one wants the server."""

    def close(self) -> None:
        """Harmless where nothing was started."""
        self._served = None
        self._backend.stop()
