"""Fills each iteration's batch in policy order, within the batch's limits and the device's memory. Pure.

Preemption is a matter of course here: every step starts from the policy's order anew, and whoever is not
at its head does not run. What it held stays on the device until somebody before it needs the room.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from fgengine.config import Offloading
from fgengine.cost import CostModel
from fgengine.kv.manager import KVManager, Where
from fgengine.kv.transfer import Transfer
from fgengine.plan import PlanItem, StepPlan, StepResult, TokenEvent
from fgengine.request import Request
from fgengine.scheduling.offload import ArrivalReserve, swap_is_sooner
from fgengine.scheduling.policy import Policy, Priority

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
    """Computed tokens thrown away, for want of room in the host pool or because that was cheaper."""
    prompt_tokens: int = 0
    generated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Horizon:
    """How long a plan stays the right one, if nothing arrives, is aborted or ends being copied."""

    steps: int
    """It may be executed so many times in a row."""
    until: float
    """No repetition begins at or after this moment, on the engine's clock."""


@dataclass(slots=True)
class _Draft:
    """A step in the making."""

    now: float
    tokens_left: int
    items: list[PlanItem] = field(default_factory=list)
    offloads: list[Transfer] = field(default_factory=list)
    uploads: list[Transfer] = field(default_factory=list)
    claimed: int = 0
    """Device blocks, free or on their way, kept for requests that wait for more of them."""
    delayed: dict[str, Request] = field(default_factory=dict)
    """Whose turn it is, but whose KV is on the host or on its way."""
    has_prefill: bool = False
    short: bool = False
    """Somebody did not find the room it needs among the free blocks."""
    dropped: bool = False
    """Computed work was thrown away."""
    victims: list[tuple[float, Priority, Request]] | None = None
    """Requests on the device, the first to leave at the end; made when memory first runs short."""


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
        """``offloading="auto"`` takes a cost model. Raises ValueError when there is none."""
        if offloading == "auto" and cost is None:
            raise ValueError("offloading auto needs a profile, to know what copies and recomputation take")
        self.policy = policy
        self.kv = kv
        self.limits = limits
        self.counters = Counters()
        self.requests: dict[str, Request] = {}
        """All unfinished requests by id."""
        self._offloading = offloading
        self._cost = cost
        self._resident: dict[str, Request] = {}
        """Those whose KV is on the device and at rest."""
        self._swapped: dict[str, Request] = {}
        """Those whose KV is on the host and at rest."""
        self._running: dict[str, Request] = {}
        """The last batch."""
        self._delayed: dict[str, Request] = {}
        """Those that would have been in the last batch, had their KV been on the device."""
        self._plan: StepPlan | None = None
        self._draft = _Draft(0.0, 0)
        """Of the last plan: how it came about says for how long it holds."""
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
        blocks = self._most_blocks(request)
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
        draft = self._draft = _Draft(now, self.limits.max_tokens_per_batch)
        self._walk(draft)
        if self._reserve is not None:
            self._keep_reserve(self._reserve.blocks(now), draft)
        batch = {item.request.id: item.request for item in draft.items}
        for id, request in self._running.items():
            if id not in batch and not request.finished:
                request.preemptions += 1
                self.counters.preemptions += 1
                request.enter("queued", now)
        for id, request in self._delayed.items():
            if id not in draft.delayed and not request.finished:
                request.enter("queued", now)
        for request in draft.delayed.values():
            request.enter("swapped", now)
        self._running, self._delayed = batch, draft.delayed
        for item in draft.items:
            request = item.request
            decode = item.num_tokens == 1 and len(request.tokens) > request.prompt_len
            request.enter("decode" if decode else "prefill", now)
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
            if request.finish_reason is not None:
                continue
            request.num_computed += item.num_tokens
            request.last_ran_at = now
            if item.yields_token:
                events.append(self._append(request, result, now))
            self._ran(request, result.seconds, now)
        return events

    def copied(self, transfers: list[Transfer]) -> None:
        """These copies are done."""
        for transfer in transfers:
            self.kv.finish(transfer)
            request = self.requests.get(transfer.request_id)
            if request is None:
                continue
            where = self.kv.where(request.id)
            if where is Where.DEVICE:
                self._resident[request.id] = request
            elif where is Where.HOST:
                self._swapped[request.id] = request

    def _append(self, request: Request, result: StepResult, now: float) -> TokenEvent:
        token = result.tokens[request.id]
        logprob = result.logprobs.get(request.id) if result.logprobs else None
        request.tokens.append(token)
        generated = len(request.tokens) - request.prompt_len
        if generated == 1:
            request.first_token_at = now
            self.counters.prompt_tokens += request.prompt_len
        if logprob is not None:
            request.logprobs.append(logprob)
        self.counters.generated_tokens += 1
        params = request.params
        if token in params.stop_token_ids or (token in self.limits.eos_token_ids and not params.ignore_eos):
            request.finish("stop", now)
        elif generated >= params.max_tokens:
            request.finish("length", now)
        return TokenEvent(request, token, logprob)

    def _ran(self, request: Request, seconds: float, now: float) -> None:
        if request.finish_reason is None:
            self.policy.on_step(request, seconds, now)
        else:
            self.counters.finished += 1
            self._forget(request)

    def _forget(self, request: Request) -> None:
        self.policy.remove(request)
        self.kv.release(request.id)
        for group in (self.requests, self._resident, self._swapped, self._running, self._delayed):
            group.pop(request.id, None)

    # -- many steps as one: for simulations ------------------------------------------------------------

    def horizon(self, now: float) -> Horizon:
        """How often the plan just made for ``now`` would be made again, were it made at every step.

        Conservative: 1 wherever it cannot be told. A plan of decodes holds until one of them ends or the
        policy's order changes, as long as the free blocks last; where memory is short, until one of them
        needs a block.
        """
        draft, kv = self._draft, self.kv
        once = Horizon(1, math.inf)
        if draft.has_prefill or draft.offloads or draft.uploads or draft.dropped or self.limits.eos_token_ids:
            return once
        steps = self._steps_to_an_end(draft.items)
        spare = 0 if draft.short else kv.device.num_free
        if self._reserve is not None:
            # Who comes back and who leaves ahead of need hangs on waits that change with every step.
            if self._swapped or kv.transfers_in_flight or spare < self._reserve.blocks(now):
                return once
            spare -= self._reserve.blocks(now)
        steps = self._steps_within(spare, draft.items, steps) if steps > 1 else 1
        if steps <= 1:
            return once
        return Horizon(steps, now + self.policy.steady_seconds(self._running.values(), now))

    def leap(self, steps: int, seconds: float, now: float) -> list[Request]:
        """Take in ``steps`` executions of the last plan that took ``seconds`` together and ended at ``now``.

        Every token is 0. More steps than one only as ``horizon`` allows. Returns the requests that ended.
        """
        plan, self._plan = self._plan, None
        if plan is None:
            raise RuntimeError("no step is planned")
        self.counters.steps += steps
        zeros = bytes(steps)
        finished = []
        for item in plan.items:
            request = item.request
            if len(item.blocks) * self.kv.block_size < item.start + steps:
                self.kv.grow(request.id, item.start + steps)
            request.num_computed += item.num_tokens + steps - 1
            request.last_ran_at = now
            if item.yields_token:
                if len(request.tokens) == request.prompt_len:
                    request.first_token_at = now
                    self.counters.prompt_tokens += request.prompt_len
                request.tokens.extend(zeros)
                self.counters.generated_tokens += steps
                if len(request.tokens) - request.prompt_len >= request.params.max_tokens:
                    request.finish("length", now)
                    finished.append(request)
            self._ran(request, seconds, now)
        return finished

    @staticmethod
    def _steps_to_an_end(items: Collection[PlanItem]) -> int:
        """Steps until the first of them ends; 1 where one of them is not plain decoding."""
        steps = 2**31
        for request, _, _, _, yields_token in items:
            generated = len(request.tokens) - request.prompt_len
            if generated == 0 or not yields_token or request.params.stop_token_ids:
                return 1
            steps = min(steps, request.params.max_tokens - generated)
        return steps

    def _steps_within(self, spare: int, items: Collection[PlanItem], steps: int) -> int:
        """The most steps, up to ``steps``, for which the items need no more than ``spare`` new blocks."""

        def needed(steps: int) -> int:
            size = self.kv.block_size
            return sum(max(0, -(-(item.start + steps) // size) - len(item.blocks)) for item in items)

        if len(items) * (steps // self.kv.block_size + 1) <= spare or needed(steps) <= spare:
            return steps
        low, high = 1, steps  # the plan itself has its blocks
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if needed(middle) <= spare else (low, middle)
        return low

    # -- filling a batch -----------------------------------------------------------------------------

    def _walk(self, draft: _Draft) -> None:
        """In policy order until the batch is full, the tokens are spent or the memory is.

        A request that waits for a copy takes no place in the batch; as many again as the batch holds are
        looked at for those, so that a step never depends on the number of waiting requests.
        """
        most, items = self.limits.max_batch_size, draft.items
        admitting = True
        seen: set[str] = set()
        for request in islice(self.policy.order(draft.now), 2 * most):
            if len(items) >= most or draft.tokens_left == 0:
                return
            if admitting:
                seen.add(request.id)
                admitting = self._try(request, draft)
            elif self._runs_in_place(request):
                seen.add(request.id)
                self._try(request, draft, evict=False)
        if admitting:
            return
        # Nobody can be admitted; who ran last and needs no room runs on, however far back in the order. Where
        # that is nobody, nothing is on its way and a step is to be had at all, it is one of the others.
        for group in (self._running, self._resident):
            rest = [r for r in group.values() if r.id not in seen and self._runs_in_place(r)]
            for request in sorted(rest, key=self.policy.priority):
                if len(items) >= most or draft.tokens_left == 0:
                    return
                self._try(request, draft, evict=False)
            if items or self.kv.transfers_in_flight:
                return

    def _runs_in_place(self, request: Request) -> bool:
        """Whether it may run without being admitted: a decode, or one that has room for its longest."""
        return request.id in self._resident and (request.num_pending == 1 or self._offloading == "none")

    def _try(self, request: Request, draft: _Draft, *, evict: bool = True) -> bool:
        """Put the request into the batch, or start what it waits for. False: let no later one be admitted."""
        kv, start = self.kv, request.num_computed
        pending = len(request.tokens) - start
        if pending == 1:
            table = kv.table_with_room(request.id, start + 1)
            if table is not None:  # by far the most frequent case
                draft.items.append(PlanItem(request, start, 1, table, True))
                draft.tokens_left -= 1
                return True
        where = kv.where(request.id)
        if where is Where.OFFLOADING or where is Where.UPLOADING:
            draft.delayed[request.id] = request
            return True
        if where is Where.HOST:
            draft.delayed[request.id] = request
            room = self._make_room(kv.num_blocks(request.id), request, draft, evict)
            if room == "now":
                self._upload(request, draft)
            return room != "never"
        count = self._tokens_now(pending, draft)
        if count == 0:
            return self.limits.chunked_prefill  # a decode may find its token where a prompt found none
        reached = start + count
        to_hold = reached if self._offloading != "none" else request.max_len - 1
        room = self._make_room(kv.missing(request.id, to_hold), request, draft, evict)
        if room == "now":
            kv.grow(request.id, to_hold)
            self._resident[request.id] = request
            yields = reached == len(request.tokens)
            draft.items.append(PlanItem(request, start, count, kv.table(request.id), yields))
            draft.tokens_left -= count
            draft.has_prefill |= count > 1
        return room != "never"

    def _tokens_now(self, pending: int, draft: _Draft) -> int:
        """How many of a request's pending tokens this step computes; 0: it must wait.

        Prompts are computed whole, and one that no batch could hold beside the decodes in pieces. Chunked,
        they take what is left once everybody else in the batch has a token, so that decodes never
        wait for them (Sarathi-Serve, OSDI'24).
        """
        if pending == 1:
            return 1
        if self.limits.chunked_prefill:
            others = min(self.limits.max_batch_size, len(self.requests)) - len(draft.items) - 1
            least = 0 if draft.items else 1
            return min(pending, max(least, draft.tokens_left - others))
        if pending <= draft.tokens_left:
            return pending
        return 0 if draft.has_prefill else draft.tokens_left

    # -- memory ----------------------------------------------------------------------------------------

    def _most_blocks(self, request: Request) -> int:
        """Blocks of its longest; the last token is reported, never computed, and needs no KV."""
        return self.kv.blocks_for(request.max_len - 1)

    def _make_room(self, need: int, request: Request, draft: _Draft, evict: bool) -> Room:
        """Find ``need`` device blocks for the request at the cost of those that run after it.

        "later": they are on their way and kept for it; "never": not in this step, whoever leaves.
        """
        kv = self.kv
        spare = kv.device.num_free + kv.incoming - draft.claimed
        if need <= 0 or need <= min(kv.device.num_free, spare):
            return "now"
        draft.short = True
        if not evict:
            return "never"
        # Work is thrown away only to keep computed work going or for the first in line, else a full host pool
        # would have every job recomputed at each turn of the queues.
        may_drop = request.num_computed > 0 or not (draft.items or draft.uploads or draft.claimed)
        leaving = self._leaving(need - spare, request, draft, may_drop)
        if leaving is None:
            draft.claimed = kv.device.num_free + kv.incoming
            return "never"
        for victim in leaving:
            self._evict(victim, draft)
        if need <= kv.device.num_free and need <= kv.device.num_free + kv.incoming - draft.claimed:
            return "now"  # work was thrown away, not copied: its blocks are free at once
        draft.claimed += need
        return "later"

    def _leaving(self, need: int, request: Request, draft: _Draft, may_drop: bool) -> list[Request] | None:
        """Who leaves for ``need`` more blocks, all of them behind ``request``; None: there are not enough."""
        if self._offloading == "none":
            return None if need > 0 else []
        if draft.victims is None:
            draft.victims = self._by_wait(self._resident.values(), draft.now)
        place = self.policy.priority(request)
        leaving: list[Request] = []
        host_free = self.kv.host.num_free
        for _, priority, victim in reversed(draft.victims):
            if need <= 0:
                break
            if priority <= place:
                continue
            blocks = self.kv.num_blocks(victim.id)
            if self._swaps(victim, blocks, host_free):
                host_free -= blocks
            elif not may_drop and not self._recompute_is_sooner(victim, blocks):
                break
            leaving.append(victim)
            need -= blocks
        if need > 0:
            return None
        gone = {victim.id for victim in leaving}
        draft.victims = [entry for entry in draft.victims if entry[2].id not in gone]
        return leaving

    def _by_wait(self, requests: Collection[Request], now: float) -> list[tuple[float, Priority, Request]]:
        """The last to run again at the end: by the policy's order, or by ENST where swapping is proactive."""
        policy, ahead = self.policy, self._reserve is not None
        entries = [(policy.expected_wait(r, now) if ahead else 0.0, policy.priority(r), r) for r in requests]
        entries.sort(key=lambda entry: entry[:2])
        return entries

    def _swaps(self, victim: Request, blocks: int, host_free: int) -> bool:
        """Whether its KV goes to the host; else it is thrown away, to be computed again."""
        if self._offloading == "recompute" or blocks > host_free:
            return False
        return not self._recompute_is_sooner(victim, blocks)

    def _recompute_is_sooner(self, victim: Request, blocks: int) -> bool:
        """Asked by mode ``auto`` only; the others have their answer."""
        if self._offloading != "auto" or self._cost is None:
            return False
        return not swap_is_sooner(self._cost, blocks * self.limits.block_bytes, victim.num_computed)

    def _evict(self, victim: Request, draft: _Draft) -> None:
        blocks = self.kv.num_blocks(victim.id)
        del self._resident[victim.id]
        if self._swaps(victim, blocks, self.kv.host.num_free):
            draft.offloads.append(self.kv.begin_offload(victim.id))
            victim.bytes_moved += blocks * self.limits.block_bytes
            self.counters.offloaded_blocks += blocks
        else:
            self.kv.release(victim.id)
            self.counters.recomputed_tokens += victim.num_computed
            victim.num_computed = 0
            draft.dropped = True

    def _upload(self, request: Request, draft: _Draft) -> None:
        blocks = self.kv.num_blocks(request.id)
        del self._swapped[request.id]
        draft.uploads.append(self.kv.begin_upload(request.id))
        request.bytes_moved += blocks * self.limits.block_bytes
        self.counters.uploaded_blocks += blocks

    def _keep_reserve(self, reserve: int, draft: _Draft) -> None:
        """Proactive swapping: keep ``reserve`` blocks free for arrivals; upload early into what is over."""
        kv = self.kv
        if kv.device.num_free + kv.incoming - draft.claimed < reserve:
            batch = {item.request.id for item in draft.items}
            idle = self._by_wait([r for r in self._resident.values() if r.id not in batch], draft.now)
            while idle and kv.device.num_free + kv.incoming - draft.claimed < reserve:
                victim = idle.pop()[2]
                if kv.num_blocks(victim.id) > kv.host.num_free:
                    return  # proactively throwing work away would gain nothing
                self._evict(victim, draft)
        # A block a batch member for the growth of the coming steps.
        margin = reserve + self.limits.max_batch_size + draft.claimed
        if not self._swapped or kv.device.num_free <= margin:
            return
        for _, _, request in self._by_wait(self._swapped.values(), draft.now):
            if kv.device.num_free - kv.num_blocks(request.id) < margin:
                return
            self._upload(request, draft)
