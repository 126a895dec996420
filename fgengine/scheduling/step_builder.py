"""Limits of a step, counters, and the plan of one step under construction. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from fgengine.kv.transfer import Transfer
from fgengine.plan import PlanItem
from fgengine.request import Request
from fgengine.scheduling.policy import Priority


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a step and of a request. The number of requests in a step is ``PolicyContext.max_batch_size``."""

    max_tokens_per_batch: int
    max_model_len: int
    chunked_prefill: bool = False
    eos_token_ids: frozenset[int] = frozenset()
    block_bytes: int = 0
    """KV bytes in a block, for the accounts."""


@dataclass(slots=True)
class Counters:
    """Since the engine started."""

    steps: int = 0
    finished: int = 0
    aborted: int = 0
    preemptions: int = 0
    offloaded_blocks: int = 0
    uploaded_blocks: int = 0
    recomputed_tokens: int = 0
    """Computed tokens thrown away, for want of room in the host pool or because that was cheaper."""
    prompt_tokens: int = 0
    generated_tokens: int = 0
    pressure_seconds: float = 0.0
    """Seconds in which KV memory was under pressure: nothing new started."""


@dataclass(slots=True)
class StepBuilder:
    """The plan of one step, under construction."""

    now: float
    tokens_left: int
    items: list[PlanItem] = field(default_factory=list)
    offloads: list[Transfer] = field(default_factory=list)
    uploads: list[Transfer] = field(default_factory=list)
    claimed: int = 0
    """Device blocks, free or being freed, reserved for requests that wait for more of them."""
    delayed: dict[str, Request] = field(default_factory=dict)
    """Requests whose turn it is, but whose KV is on the host or being copied."""
    has_prefill: bool = False
    short: bool = False
    """A request did not find the blocks it needs among the free ones."""
    grew: bool = False
    """A request took device blocks, so that more are free when it leaves."""
    moved: bool = False
    """KV left the device or comes back to it, or a request runs for the first time since it came back."""
    next_up: list[Request] = field(default_factory=list)
    """Requests on the host whose turn comes soon, the next one in front."""
    leaving: list[tuple[Priority, Request]] | None = None
    """Under proactive offloading: the requests that leave first, made when memory first runs short."""
