"""How long a given number of decodes of one batch takes, for ``Policy.steady_seconds``. Pure."""

from __future__ import annotations

from collections.abc import Collection

from fgengine.cost import CostModel
from fgengine.request import Request


def seconds_of_steps(cost: CostModel, running: Collection[Request], steps: float) -> float:
    """Seconds from now until the last of ``steps`` decodes of the batch ``running`` is half done.

    A simulation begins no step at or after that moment, so it takes ``steps`` steps and no more. The middle
    of the step leaves room for rounding on both sides. 0 where ``steps`` is less than 1; may be infinite.
    """
    if steps < 1.0:
        return 0.0
    attended = sum(len(request.tokens) for request in running)
    first = cost.step + cost.decode_request * len(running) + cost.decode_context * attended
    growth = cost.decode_context * len(running)  # each step attends to one token more of each request
    return (steps - 1.0) * first + growth * (steps - 1.0) * max(0.0, steps - 2.0) / 2 + first / 2
