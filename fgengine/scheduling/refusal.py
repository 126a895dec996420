"""Why an engine does not serve a request. Pure."""

from __future__ import annotations

import math


class RequestRefused(ValueError):
    """A request that could never run; the message says which limit it breaks."""


class Busy(RequestRefused):
    """A request that there is too much to do for. It could be served later."""

    def __init__(self, message: str, retry_after: float) -> None:
        """``retry_after``: seconds after which it is worth sending the request again."""
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def whole_seconds(self) -> int:
        """``retry_after`` as HTTP writes it: at least 1."""
        return max(1, math.ceil(self.retry_after))


class QueueFull(Busy):
    """It came while too many others waited."""


class QueueTimeout(Busy):
    """It was taken, waited for its start for too long and was dropped."""
