"""Sampled tokens that the host has not read yet: the next step reads them on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgengine.plan import PlanItem
from fgengine.request import Request


class DeviceTokens(NamedTuple):
    """The tokens sampled by the step that was launched last."""

    tokens: Tensor
    """[R] int64, on the device."""
    places: dict[Request, tuple[int, int]]
    """For each request that got a token: the row in ``tokens`` and the token's position in the request."""


def sources(items: Sequence[PlanItem], device_tokens: DeviceTokens | None) -> NDArray[np.int64]:
    """Return [T] int64: each input token's row in ``device_tokens.tokens``; -1: the host has the token."""
    found = np.full(sum(item.num_tokens for item in items), -1, np.int64)
    if device_tokens is not None:
        first = 0
        for request, start, num_tokens, _, _ in items:
            row, position = device_tokens.places.get(request, (-1, -1))
            if start <= position < start + num_tokens:
                found[first + position - start] = row
            first += num_tokens
    return found


def fill_in(tokens: Tensor, source: Tensor, device_tokens: Tensor) -> Tensor:
    """Return ``tokens`` [T] with ``device_tokens[source]`` at the positions where ``source`` [T] >= 0.

    All are int64; ``device_tokens`` is [R].
    """
    return torch.where(source >= 0, device_tokens[source.clamp(min=0)], tokens)
