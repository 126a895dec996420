"""Batch limits, counters, and the plan under construction for one step. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from fgengine.kv.transfer import Transfer
from fgengine.plan import PlanItem
from fgengine.request import Request
from fgengine.scheduling.policy import Priority


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a step and of a request, except ``PolicyContext.max_batch_size``."""

    max_tokens_per_batch: int
    """New tokens in one step."""
    max_model_len: int
    """Prompt and output tokens of one request."""
    chunked_prefill: bool = False
    """Whether prompts are cut so that decodes never wait for them."""
    eos_token_ids: frozenset[int] = frozenset()
    """Tokens that end a request, unless it ignores EOS."""
    block_bytes: int = 0
    """Bytes of a KV block, for the counters."""


@dataclass(slots=True)
class Counters:
    """Counters since the engine started."""

    steps: int = 0
    finished: int = 0
    aborted: int = 0
    preemptions: int = 0
    offloaded_blocks: int = 0
    uploaded_blocks: int = 0
    recomputed_tokens: int = 0
    """Computed tokens whose KV was discarded, because the host pool was full or recomputation is cheaper."""
    prompt_tokens: int = 0
    """Prompt tokens of the requests that got their first output token."""
    generated_tokens: int = 0
    pressure_seconds: float = 0.0
    """Seconds in which pressure was active, so that no request started."""


@dataclass(slots=True)
class StepBuilder:
    """The plan of one step under construction."""

    now: float
    """When the step begins, seconds on the engine's clock."""
    tokens_left: int
    """Tokens that the step may still compute."""
    items: list[PlanItem] = field(default_factory=list)
    offloads: list[Transfer] = field(default_factory=list)
    uploads: list[Transfer] = field(default_factory=list)
    claimed: int = 0
    """Device blocks, free or being freed, that are reserved for requests waiting for more blocks."""
    delayed: dict[str, Request] = field(default_factory=dict)
    """Requests selected by the policy but stalled: their KV is on the host or in transfer."""
    has_prefill: bool = False
    """Whether an item computes more than its newest token."""
    short: bool = False
    """Whether a request did not find the blocks it needs among the free ones."""
    grew: bool = False
    """Whether a request took device blocks."""
    moved: bool = False
    """Whether KV was evicted or uploaded, or a request runs for the first time since its upload."""
    next_up: list[Request] = field(default_factory=list)
    """Requests on the host that will be selected soon, the next one in front."""
    leaving: list[tuple[Priority, Request]] | None = None
    """Under proactive offloading: the eviction order, computed when it is first needed in this step."""
