"""Predicts how long a number of decode steps takes, for ``Policy.steady_seconds``. Pure."""

from __future__ import annotations

from collections.abc import Collection

from fgengine.cost import CostModel
from fgengine.request import Request


def seconds_of_steps(cost: CostModel, running: Collection[Request], steps: float) -> float:
    """Return the seconds from now until the middle of the last of ``steps`` decode steps of ``running``.

    A simulation begins no step at or after this time, so it takes exactly ``steps`` steps. The middle of the
    step tolerates rounding errors in both directions. Returns 0 if ``steps`` is less than 1. ``steps`` and
    the result may be infinite.
    """
    if steps < 1.0:
        return 0.0
    attended = sum(len(request.tokens) for request in running)
    first = cost.step + cost.decode_request * len(running) + cost.decode_context * attended
    first += cost.matmul_seconds(len(running))
    growth = cost.decode_context * len(running)  # each step attends to one more token of each request
    growing = growth * (steps - 1.0) * max(0.0, steps - 2.0) / 2 if growth else 0.0
    return (steps - 1.0) * first + growing + first / 2
