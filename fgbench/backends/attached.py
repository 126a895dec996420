"""A server that somebody else started: measured, never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fgbench.backends.backend import Report, Served
from fgbench.backends.probe import ask_served, base_url, wait_until_ready

READY_SECONDS = 30.0


class Attached:
    """Any OpenAI-compatible server by its URL. What it is set to is known only to who started it."""

    policy: str | None = None

    def __init__(self, url: str, *, name: str = "openai", model: str | None = None) -> None:
        """Raises ValueError for what is no URL."""
        self.url = base_url(url)
        self.name = name
        self.model = model

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def start(self, log: Path, report: Report) -> Served:
        report(f"asking {self.url}")
        wait_until_ready(self.url, timeout=READY_SECONDS, report=report)
        return ask_served(self.url, self.model)

    def alive(self) -> bool:
        """Always: a load against a dead server shows as connection errors, and it may come back."""
        return True

    def last_words(self) -> str:
        return ""

    def stop(self) -> None:
        """Not ours to stop."""
