"""The plan of a step (from the scheduler) and its result (from the runner)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fgengine.kv.transfer import Transfer
from fgengine.prompt_logprobs import PromptLogprobs, TopTokens
from fgengine.request import Request


class PlanItem(NamedTuple):
    """One request's part of a step: compute ``num_tokens`` tokens from position ``start``."""

    request: Request
    start: int
    num_tokens: int
    blocks: Sequence[int]
    """The request's device block table. It holds at least ``start + num_tokens`` tokens; later steps may
    extend it."""
    yields_token: bool
    """Whether the step computes the last known token and therefore yields a new one."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step computes, and the copies to submit before it."""

    step: int
    """Running number of the step."""
    items: Sequence[PlanItem] = ()
    """The batch; empty if only copies are planned."""
    offloads: Sequence[Transfer] = ()
    """Copies from device to host. Their device blocks become free only when the copies are done."""
    uploads: Sequence[Transfer] = ()
    """Copies from host to device. Their requests are in no batch until the copies are done."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens that the step computes."""
        return sum(item.num_tokens for item in self.items)


@dataclass(frozen=True, slots=True)
class StepResult:
    """The outcome of one step."""

    step: int
    """The number of its plan."""
    seconds: float
    """Time that the step took on the device; policies charge it to quanta."""
    tokens: dict[str, int] = field(default_factory=dict)
    """The new token of each request that yields one, by request id."""
    logprobs: dict[str, float] = field(default_factory=dict)
    """Log probabilities of these tokens, by request id; only for requests with ``params.logprobs``."""
    top_logprobs: dict[str, TopTokens] = field(default_factory=dict)
    """The most probable tokens in their places, by request id; only for requests with
    ``params.top_logprobs``."""
    prompt_logprobs: dict[str, PromptLogprobs] = field(default_factory=dict)
    """A piece for each prompt that asks for it and of which the step computed a part, by request id."""


class TokenEvent(NamedTuple):
    """A new token of a request. With the last token, ``request.finish_reason`` is set."""

    request: Request
    token: int
    logprob: float | None
    """Natural logarithm of the token's probability; None unless requested."""
    top: TopTokens | None = None
    """The most probable tokens in its place; None unless requested."""
    prompt: PromptLogprobs | None = None
    """With the first token: the log probabilities of the prompt; None unless requested."""
