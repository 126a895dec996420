"""The reasons why an engine does not serve a request, as exceptions. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection

from fgengine.request import SamplingParams


class RequestRefused(ValueError):
    """The request was refused. The message names the limit it exceeds.

    A plain RequestRefused means that the request can never run. The subclass ``Busy`` means that it can be
    sent again later.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        """``field``: what is wrong: ``prompt``, a field of SamplingParams or a grammar's ``field``; None: no
        field.
        """
        super().__init__(message)
        self.field = field


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


def check_needs_no_logits(params: SamplingParams) -> None:
    """Raise RequestRefused if the parameters have a field that only a real model can satisfy.

    For engines that compute no logits. Their tokens are filler, so a penalty would have no effect, and log
    probabilities would be made up.
    """
    if (name := params.needs_logits) is not None:
        raise RequestRefused(
            f"{name} needs the model's logits, and this engine only computes times: leave {name} out", name
        )


def check_leaves_a_token(params: SamplingParams, eos: Collection[int], vocab_size: int) -> None:
    """Raise RequestRefused if ``min_tokens`` forbids every token, because all of them end the request."""
    ends = {token for token in (*eos, *params.stop_token_ids) if 0 <= token < vocab_size}
    if len(ends) == vocab_size:
        raise RequestRefused(
            "min_tokens cannot be met: every token is EOS or in stop_token_ids", "min_tokens"
        )
