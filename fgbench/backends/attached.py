"""A server that somebody else started: measured, never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fgbench.backends.backend import BackendError, Report, Served
from fgbench.backends.draining import DRAIN_SECONDS, ask_requests, wait_until_idle
from fgbench.backends.probe import SilentServer, ask_served, base_url, wait_until_ready

READY_SECONDS = 30.0


class Attached:
    """Any OpenAI-compatible server by its URL. What it is set to is known only to who started it."""

    policy: str | None = None

    def __init__(
        self, url: str, *, name: str = "openai", model: str | None = None, alone: bool = False
    ) -> None:
        """``alone``: a run begins only once no request is left at the server, where that says so; else one
        that is not alone is merely told. Raises ValueError for what is no URL."""
        self.url = base_url(url)
        self.name = name
        self.model = model
        self._alone = alone

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def start(self, log: Path, report: Report) -> Served:
        report(f"asking {self.url}")
        wait_until_ready(self.url, timeout=READY_SECONDS, report=report)
        served = ask_served(self.url, self.model)
        if self._alone:
            self._wait_for_others(report)
        else:
            self._tell_of_others(report)
        return served

    def _wait_for_others(self, report: Report) -> None:
        try:
            wait_until_idle(self.url, timeout=DRAIN_SECONDS, report=report)
        except SilentServer:
            raise
        except BackendError as error:
            raise BackendError(
                f"{error}: somebody else's load, or what a killed one left, would be measured with this one; "
                "measure when the server is idle, or start it anew"
            ) from None

    def _tell_of_others(self, report: Report) -> None:
        try:
            others = ask_requests(self.url)
        except SilentServer:
            return  # it was ready a moment ago: the warm-up will show
        if others:
            are = "request is" if others == 1 else "requests are"
            report(f"{others:,} {are} at the server already: what is measured is both loads together")

    def alive(self) -> bool:
        """Always: a load against a dead server shows as connection errors, and it may come back."""
        return True

    def last_words(self) -> str:
        return ""

    def stop(self) -> None:
        """Not ours to stop."""
