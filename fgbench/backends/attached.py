"""A backend for a server that already runs: it is measured but never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fgbench.backends.backend import BackendError, ReadyServer, Report
from fgbench.backends.identity import ask_identity, identity_in_words
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
from fgbench.spec.access import OPEN, Access, key_variable

READY_SECONDS = 30.0


class Attached(Server):
    """An OpenAI-compatible server at a URL. Its settings are what it reports about itself."""

    def __init__(
        self,
        url: str,
        *,
        name: str = "",
        model: str | None = None,
        alone: bool = False,
        endpoint: str = "completions",
        access: Access = OPEN,
    ) -> None:
        """Use the server at ``url``.

        Args:
            name: Name in tables. Empty: the host and port.
            alone: Start a run only when the server has no other requests, if it reports their number. False:
                only report other requests.
            access: How the server is reached: headers such as a key, and TLS.

        Raises:
            ValueError: ``url`` is not a URL.
        """
        self._url = base_url(url)
        self.url = self._url
        self.name = name or urlsplit(self._url).netloc
        self._identity: dict[str, Any] = {}
        self.model = model
        self.endpoint = endpoint
        self._alone = alone
        self.access = access.with_key_for(self._url)
        self._uses_key_of_environment = self.access != access
        ask_with(self._url, self.access)

    @property
    def settings(self) -> dict[str, Any]:
        """Its URL and what it reports about itself; empty before ``start``, and if it reports nothing."""
        return {"url": self._url, **self._identity} if self._identity else {}

    def _start(self, log: Path, report: Report) -> ReadyServer:
        report(f"connecting to {self._url}")
        if self._uses_key_of_environment:
            report(f"the key in ${key_variable()} is sent to it")
        wait_until_ready(self._url, timeout=READY_SECONDS, report=report)
        ready = ask_served(self._url, self.model)
        self._identity = ask_identity(self._url)
        if words := identity_in_words(self._identity):
            report(f"the server says that it is {words}")
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
