"""The reasons why an engine does not serve a request, as exceptions. Pure."""

from __future__ import annotations

import math


class RequestRefused(ValueError):
    """The request was refused. The message names the limit it exceeds.

    A plain RequestRefused means that the request can never run. The subclass ``Busy`` means that it can be
    sent again later.
    """


class Busy(RequestRefused):
    """The engine has too much work now; the request could be served later."""

    def __init__(self, message: str, retry_after: float) -> None:
        """``retry_after``: seconds after which the client should send the request again."""
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def whole_seconds(self) -> int:
        """``retry_after`` as an integer for the HTTP header, at least 1."""
        return max(1, math.ceil(self.retry_after))


class QueueFull(Busy):
    """Too many requests were waiting when the request arrived."""


class QueueTimeout(Busy):
    """The request was accepted, but waited for its start longer than the timeout and was dropped."""
