"""A server that runs already: measured, never stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fgbench.backends.backend import BackendError, ReadyServer, Report
from fgbench.backends.probe import (
    DRAIN_SECONDS,
    SilentServer,
    ask_requests,
    ask_served,
    ask_with,
    base_url,
    wait_until_idle,
    wait_until_ready,
)
from fgbench.backends.server import Server

READY_SECONDS = 30.0


class Attached(Server):
    """Any OpenAI-compatible server by its URL. Its settings are not known."""

    def __init__(
        self,
        url: str,
        *,
        name: str = "openai",
        model: str | None = None,
        alone: bool = False,
        endpoint: str = "completions",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``alone``: a run begins only once no request is left at the server, where the server says so; else
        others' requests are only reported. ``headers`` are sent with every request.

        Raises ValueError for what is no URL.
        """
        self._url = base_url(url)
        self.url = self._url
        self.name = name
        self.model = model
        self.endpoint = endpoint
        self._alone = alone
        self.headers = dict(headers or {})
        ask_with(self._url, self.headers)

    def _start(self, log: Path, report: Report) -> ReadyServer:
        report(f"asking {self._url}")
        wait_until_ready(self._url, timeout=READY_SECONDS, report=report)
        ready = ask_served(self._url, self.model)
        if self._alone:
            self._wait_for_others(report)
        else:
            self._report_others(report)
        return ready

    def _wait_for_others(self, report: Report) -> None:
        try:
            wait_until_idle(self._url, timeout=DRAIN_SECONDS, report=report)
        except SilentServer:
            raise
        except BackendError as error:
            raise BackendError(
                f"{error}: somebody else's load, or what a killed one left, would be measured with this one; "
                "measure when the server is idle, or start it anew"
            ) from None

    def _report_others(self, report: Report) -> None:
        try:
            others = ask_requests(self._url)
        except SilentServer:
            return  # it was ready a moment ago: the warm-up will show
        if others:
            are = "request is" if others == 1 else "requests are"
            report(f"{others:,} {are} at the server already: what is measured is both loads together")

    def alive(self) -> bool:
        """Always: a load against a dead server shows as connection errors, and it may come back."""
        return True
