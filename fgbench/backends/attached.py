"""A backend for a server that already runs: it is measured but never stopped."""

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
    """An OpenAI-compatible server at a URL. Its settings are not known."""

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
        """Use the server at ``url``.

        Args:
            alone: Start a run only when the server has no other requests, if it reports their number. False:
                only report other requests.
            headers: Sent with every request.

        Raises:
            ValueError: ``url`` is not a URL.
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
        report(f"connecting to {self._url}")
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
                f"{error}, and requests of another client would change the figures: measure when the server "
                "is idle, or restart it"
            ) from None

    def _report_others(self, report: Report) -> None:
        try:
            others = ask_requests(self._url)
        except SilentServer:
            return  # it was ready just before; if it has died, the warm-up fails
        if others:
            requests = "request" if others == 1 else "requests"
            report(f"the server already has {others:,} other {requests}, which will change the figures")

    def alive(self) -> bool:
        """Return True always: requests to a dead server fail, and the server may be restarted."""
        return True
