"""Why an engine does not serve a request. Pure."""

from __future__ import annotations


class RequestRefused(ValueError):
    """A request that could never run; the message says which limit it breaks."""


class QueueFull(RequestRefused):
    """A request that came while too many others waited. It could run later."""

    def __init__(self, message: str, retry_after: float) -> None:
        """``retry_after``: seconds after which it is worth sending the request again."""
        super().__init__(message)
        self.retry_after = retry_after


class QueueTimeout(RequestRefused):
    """A request that was taken, waited for its start for too long and was dropped."""

    def __init__(self, message: str, retry_after: float) -> None:
        """``retry_after``: as of ``QueueFull``."""
        super().__init__(message)
        self.retry_after = retry_after
