"""What the scheduler decides (StepPlan) and what the runner reports (StepResult), each as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fgengine.kv.transfer import Transfer
from fgengine.request import Request


class PlanItem(NamedTuple):
    """Compute ``num_tokens`` tokens of ``request`` from position ``start`` on.

    ``blocks`` is the request's device block table, long enough for ``start + num_tokens`` tokens; it may be
    longer, and grow as later steps need it to.
    The step yields a new token for the request exactly when ``yields_token``: then the last known
    token has been computed.
    """

    request: Request
    start: int
    num_tokens: int
    blocks: Sequence[int]
    yields_token: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    step: int
    items: Sequence[PlanItem] = ()
    offloads: Sequence[Transfer] = ()
    """Device to host, submitted before the step runs; their device blocks are free only when done."""
    uploads: Sequence[Transfer] = ()
    """Host to device; their requests are in no batch until done."""

    @property
    def num_tokens(self) -> int:
        return sum(item.num_tokens for item in self.items)


@dataclass(frozen=True, slots=True)
class StepResult:
    step: int
    seconds: float
    """How long the step took on the device: what policies charge to quanta."""
    tokens: dict[str, int] = field(default_factory=dict)
    logprobs: dict[str, float] = field(default_factory=dict)
    """Only for the requests that asked for them."""


class TokenEvent(NamedTuple):
    """A request's new token. On its last one ``request.finish_reason`` is set."""

    request: Request
    token: int
    logprob: float | None
