"""Fills each iteration's batch in policy order, within the batch's limits and the device's memory. Pure.

Preemption is a matter of course here: every step starts from the policy's order anew, and whoever is not
at its head does not run. What it held stays on the device until somebody before it needs the room.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from fgengine.config import Offloading
from fgengine.cost import CostModel
from fgengine.kv.manager import KVManager, Where
from fgengine.kv.transfer import Transfer
from fgengine.plan import PlanItem, StepPlan, StepResult, TokenEvent
from fgengine.request import Request
from fgengine.scheduling.offload import ArrivalReserve
from fgengine.scheduling.policy import Policy

Room = Literal["now", "later", "never"]


class RequestRefused(ValueError):
    """A request that could never run; the message says which limit it breaks."""


@dataclass(frozen=True, slots=True)
class Limits:
    max_batch_size: int
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
    """Computed tokens thrown away because the host pool had no room for them."""
    prompt_tokens: int = 0
    generated_tokens: int = 0


@dataclass(slots=True)
class _Draft:
    """A step in the making."""

    tokens_left: int
    items: list[PlanItem] = field(default_factory=list)
    offloads: list[Transfer] = field(default_factory=list)
    uploads: list[Transfer] = field(default_factory=list)
    claimed: int = 0
    """Device blocks, free or on their way, kept for requests that wait for more of them."""
    has_prefill: bool = False
    victims: list[Request] | None = None
    """Requests on the device, the last to run at the end; made when memory first runs short."""


class Scheduler:
    def __init__(
        self,
        policy: Policy,
        kv: KVManager,
        limits: Limits,
        *,
        offloading: Offloading = "reactive",
        cost: CostModel | None = None,
    ) -> None:
        self.policy = policy
        self.kv = kv
        self.limits = limits
        self.counters = Counters()
        self.requests: dict[str, Request] = {}
        """All unfinished requests by id."""
        self._resident: dict[str, Request] = {}
        """Those whose KV is on the device and at rest."""
        self._swapped: dict[str, Request] = {}
        """Those whose KV is on the host and at rest."""
        self._running: dict[str, Request] = {}
        """The last batch."""
        self._plan: StepPlan | None = None
        self._reserve = ArrivalReserve(kv.device.num_blocks) if offloading == "proactive" else None

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_swapped(self) -> int:
        return len(self._swapped)

    def add(self, request: Request, now: float) -> None:
        """Raises RequestRefused for a request that can never fit or whose id is in use."""
        if request.id in self.requests:
            raise RequestRefused(f"a request with the id {request.id!r} is running already")
        if request.max_len > self.limits.max_model_len:
            raise RequestRefused(
                f"the prompt's {request.prompt_len} tokens and max_tokens {request.params.max_tokens} make "
                f"{request.max_len}; the limit is {self.limits.max_model_len} (max_model_len)"
            )
        # The last token is reported, never computed: it needs no KV.
        blocks = self.kv.blocks_for(request.max_len - 1)
        if blocks > self.kv.device.num_blocks:
            raise RequestRefused(
                f"the prompt's {request.prompt_len} tokens and max_tokens {request.params.max_tokens} need "
                f"{blocks} KV blocks; the device pool has {self.kv.device.num_blocks}"
            )
        self.requests[request.id] = request
        self.policy.add(request, now)
        if self._reserve is not None:
            self._reserve.arrived(self.kv.blocks_for(request.prompt_len), now)

    def abort(self, request_id: str, now: float) -> Request | None:
        """Forget the request, from any state; None when it is not known (any more)."""
        request = self.requests.get(request_id)
        if request is not None:
            request.finish("abort", now)
            self.counters.aborted += 1
            self._forget(request)
        return request

    def schedule(self, now: float) -> StepPlan:
        """The next step. Every transfer in it is submitted and every item executed by the caller."""
        draft = _Draft(tokens_left=self.limits.max_tokens_per_batch)
        self._walk(draft, now)
        if self._reserve is not None:
            self._keep_reserve(self._reserve.blocks(now), draft, now)
        batch = {item.request.id: item.request for item in draft.items}
        for request in self._running.values():
            if request.id not in batch and not request.finished:
                request.preemptions += 1
                self.counters.preemptions += 1
                if request.phase != "swapped":
                    request.enter("queued", now)
        self._running = batch
        for item in draft.items:
            decode = item.num_tokens == 1 and item.request.num_generated > 0
            item.request.enter("decode" if decode else "prefill", now)
        self._plan = StepPlan(self.counters.steps, draft.items, draft.offloads, draft.uploads)
        return self._plan

    def update(self, result: StepResult, now: float) -> list[TokenEvent]:
        """Take in what the planned step computed.

        Raises RuntimeError when the result is not of the last plan.
        """
        plan, self._plan = self._plan, None
        if plan is None or plan.step != result.step:
            raise RuntimeError(f"a result of step {result.step} came, but that step is not planned")
        self.counters.steps += 1
        events = []
        for item in plan.items:
            request = item.request
            if request.finished:
                continue
            request.num_computed += item.num_tokens
            request.last_ran_at = now
            if item.yields_token:
                events.append(self._append(request, result, now))
            if request.finished:
                self.counters.finished += 1
                self._forget(request)
            else:
                self.policy.on_step(request, result.seconds, now)
        return events

    def copied(self, transfers: list[Transfer], now: float) -> None:
        """These copies are done."""
        for transfer in transfers:
            self.kv.finish(transfer)
            request = self.requests.get(transfer.request_id)
            if request is None:
                continue
            where = self.kv.where(request.id)
            if where is Where.DEVICE:
                self._resident[request.id] = request
                request.enter("queued", now)
            elif where is Where.HOST:
                self._swapped[request.id] = request

    def _append(self, request: Request, result: StepResult, now: float) -> TokenEvent:
        token = result.tokens[request.id]
        logprob = result.logprobs.get(request.id)
        if request.num_generated == 0:
            request.first_token_at = now
            self.counters.prompt_tokens += request.prompt_len
        request.tokens.append(token)
        if logprob is not None:
            request.logprobs.append(logprob)
        self.counters.generated_tokens += 1
        params = request.params
        stops = token in params.stop_token_ids
        if stops or (not params.ignore_eos and token in self.limits.eos_token_ids):
            request.finish("stop", now)
        elif request.num_generated >= params.max_tokens:
            request.finish("length", now)
        return TokenEvent(request, token, logprob)

    def _forget(self, request: Request) -> None:
        self.policy.remove(request)
        self.kv.release(request.id)
        for group in (self.requests, self._resident, self._swapped, self._running):
            group.pop(request.id, None)

    # -- filling a batch -----------------------------------------------------------------------------

    def _walk(self, draft: _Draft, now: float) -> None:
        """In policy order until the batch is full, the tokens are spent or the memory is.

        A request that waits for a copy takes no place in the batch; as many again as the batch holds are
        looked at for those, so that a step never depends on the number of waiting requests.
        """
        seen: set[str] = set()
        for request in islice(self.policy.order(now), 2 * self.limits.max_batch_size):
            if self._full(draft):
                return
            seen.add(request.id)
            if not self._try(request, draft, now):
                break
        else:
            return
        # Nothing more can be admitted; whoever is on the device and needs no room can still decode.
        rest = [r for r in self._resident.values() if r.id not in seen and r.num_pending == 1]
        for request in sorted(rest, key=self.policy.priority):
            if self._full(draft):
                return
            self._try(request, draft, now, evict=False)

    def _full(self, draft: _Draft) -> bool:
        return len(draft.items) >= self.limits.max_batch_size or draft.tokens_left == 0

    def _try(self, request: Request, draft: _Draft, now: float, *, evict: bool = True) -> bool:
        """Put the request into the batch, or start what it waits for. False: let no later one be admitted."""
        where = self.kv.where(request.id)
        if where in (Where.OFFLOADING, Where.UPLOADING):
            return True
        if where is Where.HOST:
            room = self._make_room(self.kv.num_blocks(request.id), request, draft, now, evict)
            if room == "now":
                self._upload(request, draft)
            return room != "never"
        count = request.num_pending
        if count > draft.tokens_left:
            # Prompts are computed whole; one that no batch could hold beside the decodes goes in pieces.
            if draft.has_prefill:
                return False
            count = draft.tokens_left
        reached = request.num_computed + count
        room = self._make_room(self.kv.missing(request.id, reached), request, draft, now, evict)
        if room == "now":
            self.kv.grow(request.id, reached)
            self._resident[request.id] = request
            yields = reached == request.num_known
            blocks = tuple(self.kv.table(request.id))
            draft.items.append(PlanItem(request, request.num_computed, count, blocks, yields))
            draft.tokens_left -= count
            draft.has_prefill |= count > 1
        return room != "never"

    # -- memory ----------------------------------------------------------------------------------------

    def _make_room(self, need: int, request: Request, draft: _Draft, now: float, evict: bool) -> Room:
        """Find ``need`` device blocks for the request at the cost of those that run after it.

        "later": they are on their way and kept for it; "never": not in this step, whoever leaves.
        """
        kv = self.kv
        spare = kv.device.num_free + kv.incoming - draft.claimed
        if need <= 0 or need <= min(kv.device.num_free, spare):
            return "now"
        if not evict:
            return "never"
        if draft.victims is None:
            draft.victims = sorted(self._resident.values(), key=self.policy.priority)
        victims = draft.victims
        place = self.policy.priority(request)
        # Work is thrown away only to keep computed work going or for the first in line, else a full host pool
        # would have every job recomputed at each turn of the queues.
        may_drop = request.num_computed > 0 or not (draft.items or draft.uploads or draft.claimed)
        reachable, host_free = 0, kv.host.num_free
        for victim in reversed(victims):
            if self.policy.priority(victim) <= place:
                break
            blocks = kv.num_blocks(victim.id)
            if blocks <= host_free:
                host_free -= blocks
            elif not may_drop:
                break
            reachable += blocks
        if need > spare + reachable:
            draft.claimed = kv.device.num_free + kv.incoming
            return "never"
        while need > kv.device.num_free + kv.incoming - draft.claimed:
            self._evict(victims.pop(), draft, now)
        if need <= kv.device.num_free:
            return "now"  # work was thrown away, not copied: its blocks are free at once
        draft.claimed += need
        return "later"

    def _evict(self, victim: Request, draft: _Draft, now: float) -> None:
        """To the host where it has room, else thrown away, to be computed again."""
        blocks = self.kv.num_blocks(victim.id)
        del self._resident[victim.id]
        if blocks <= self.kv.host.num_free:
            draft.offloads.append(self.kv.begin_offload(victim.id))
            victim.enter("swapped", now)
            victim.bytes_moved += blocks * self.limits.block_bytes
            self.counters.offloaded_blocks += blocks
        else:
            self.kv.release(victim.id)
            self.counters.recomputed_tokens += victim.num_computed
            victim.num_computed = 0

    def _upload(self, request: Request, draft: _Draft) -> None:
        blocks = self.kv.num_blocks(request.id)
        del self._swapped[request.id]
        draft.uploads.append(self.kv.begin_upload(request.id))
        request.bytes_moved += blocks * self.limits.block_bytes
        self.counters.uploaded_blocks += blocks

    def _keep_reserve(self, reserve: int, draft: _Draft, now: float) -> None:
        """Proactive swapping: keep ``reserve`` blocks free for arrivals; upload early into what is over."""
        kv = self.kv
        batch = {item.request.id for item in draft.items}
        idle = [r for r in self._resident.values() if r.id not in batch]
        idle.sort(key=self.policy.priority)
        while idle and kv.device.num_free + kv.incoming - draft.claimed < reserve:
            if kv.num_blocks(idle[-1].id) > kv.host.num_free:
                return  # proactively throwing work away would gain nothing
            self._evict(idle.pop(), draft, now)
        # A block a batch member for the growth of the coming steps.
        margin = reserve + self.limits.max_batch_size + draft.claimed
        for request in sorted(self._swapped.values(), key=self.policy.priority):
            if kv.device.num_free - kv.num_blocks(request.id) < margin:
                return
            self._upload(request, draft)
