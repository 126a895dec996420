"""Sampled tokens that the host has not read: the next step takes them from the device."""

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
    """Of the step that was launched last."""

    tokens: Tensor
    """[R] int64, on the device."""
    places: dict[Request, tuple[int, int]]
    """Of each request that was given one: its row in ``tokens``, and the token's position in the request."""


def sources(items: Sequence[PlanItem], device_tokens: DeviceTokens | None) -> NDArray[np.int64]:
    """[T]: for each token to be computed its row in ``device_tokens.tokens``; -1: the host knows it."""
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
    """``tokens`` [T], with ``device_tokens[source]`` where ``source`` [T] is not negative."""
    return torch.where(source >= 0, device_tokens[source.clamp(min=0)], tokens)
