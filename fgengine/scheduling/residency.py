"""KV residency: decides whose KV is on the device, whose is evicted, and whose is uploaded again. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Literal

from fgengine.config import Admission, Offloading
from fgengine.cost import CostModel, StepShape
from fgengine.kv.manager import KVManager
from fgengine.kv.transfer import Direction
from fgengine.plan import StepPlan
from fgengine.request import Request
from fgengine.scheduling.offload import ArrivalReserve, offload_is_faster
from fgengine.scheduling.policy import Policy, Priority
from fgengine.scheduling.pressure import Pressure, Watched
from fgengine.scheduling.ranking import Ranking
from fgengine.scheduling.step_builder import Counters, StepBuilder

Found = Literal["now", "later", "never"]
"""Whether device blocks were found for a request.

``now``: they are free. ``later``: they are being freed, or the link is busy; later requests of the order may
not take them. ``never``: they cannot be found in this step by any eviction.
"""

STEPS_IN_FLIGHT = 2
"""Limit of the copies in flight in each direction: the bytes that the link carries in this many full decode
steps. More copies would not finish earlier, and they would hold blocks in both pools for longer."""
TYPICAL_CONTEXT = 512
"""Context of a typical request in such a step, tokens."""
MIN_CHOICE = 8
"""Minimum number of requests whose expected waits proactive offloading compares; a larger batch raises it."""
UNMEASURED_BLOCKS = 4
"""Limit of the copies in flight without a cost model, blocks for each request of a full batch."""


class KVResidency:
    """The scheduler's interface to the KV pools: it finds blocks, evicts, offloads and uploads.

    "Evict" means that KV leaves the device: it is offloaded to the host, or discarded and recomputed later.
    """

    def __init__(
        self,
        policy: Policy,
        kv: KVManager,
        block_bytes: int,
        counters: Counters,
        offloading: Offloading,
        admission: Admission,
        cost: CostModel | None,
    ) -> None:
        """Raises ValueError if ``offloading`` is "auto" and there is no cost model."""
        if offloading == "auto" and cost is None:
            raise ValueError(
                "offloading auto needs a profile, to predict copy and recomputation times: give --profile"
            )
        self._policy = policy
        self._kv = kv
        self._block_bytes = block_bytes
        self._max_batch_size = policy.context.max_batch_size
        self._counters = counters
        self._offloading = offloading
        self._cost = cost
        self._max_in_flight = blocks_in_flight(self._max_batch_size, block_bytes, cost)
        self.pressure = Pressure(policy, kv, counters, self._watched(), cost, admission)
        self._ranking = Ranking(self.pressure.priority)
        """The requests on the device in priority order; eviction begins at the end."""
        self._unused: set[str] = set()
        """Ids of the requests on the device that were uploaded and have not run since then."""
        self.reserve = ArrivalReserve(kv.device.num_blocks) if offloading == "proactive" else None

    @property
    def reserves_max_len(self) -> bool:
        """Whether each admitted request holds blocks for its maximum length; nothing is evicted then."""
        return self._offloading == "none"

    @property
    def blocking(self) -> bool:
        """Whether no step runs while KV is being copied."""
        return self._offloading == "blocking"

    def begin_step(self, now: float, num_unfinished: int) -> None:
        """Update the state of pressure before a step is planned."""
        if self.pressure.update(now, num_unfinished):
            self._ranking.rebuild()

    def arrived(self, request: Request, now: float) -> None:
        """Record a new request."""
        if self.reserve is not None:
            self.reserve.arrived(request.id, self._kv.blocks_for(request.prompt_len), now)

    def ran(self, batch: Iterable[Request]) -> None:
        """Record that the priorities of these requests may have changed, because they are in a batch."""
        on_device = self._kv.on_device
        self._ranking.touch(request for request in batch if request.id in on_device)

    def ended_step(self, plan: StepPlan, now: float) -> None:
        """Record that the plan was executed."""
        self.ran(item.request for item in plan.items)
        self.pressure.ended_step(now)

    def uses(self, batch: Collection[str]) -> bool:
        """Record the ids of the batch just made.

        Returns whether one of the requests runs for the first time since its upload.
        """
        used = self._unused.intersection(batch)
        self._unused -= used
        return bool(used)

    def copied(self, request: Request) -> None:
        """Record that a copy of the request's KV has finished."""
        if request.id in self._kv.on_device:
            self._ranking.add(request)
            self._unused.add(request.id)

    def forget(self, request: Request) -> None:
        """Free all blocks of the request, on the device and on the host."""
        self._kv.release(request.id)
        self._leave_device(request)
        self.pressure.ended(request.id)
        if self.reserve is not None:
            self.reserve.started(request.id)

    def ended(self, request: Request, *, last: bool) -> None:
        """Record that the request has ended; ``last``: no unfinished request is left."""
        self.forget(request)
        self.pressure.work.ended(request)
        if last:
            self.pressure.work.idle()

    def admit(self, request: Request, reached: int, builder: StepBuilder, *, evict: bool) -> Found:
        """Find device blocks for the request's first ``reached`` tokens and take them if they are free.

        Args:
            evict: whether other requests may be evicted for it.
        """
        to_hold = request.max_len - 1 if self.reserves_max_len else reached
        need = self._kv.missing(request.id, to_hold)
        started = self.pressure.has_started(request)
        if not started and not self.pressure.may_start(request):
            builder.short = True
            return "never"
        if started and need <= self._kv.device.num_free:
            found: Found = "now"  # a request that waits for more blocks would gain nothing if this one waited
        elif not started and self.pressure.active:
            margin = self._max_batch_size if self._kv.on_device else 0  # for the growth of started requests
            found = self._find(need + margin, request, builder, evict=False)
        else:
            found = self._find(need, request, builder, evict)
        if found == "now":
            builder.grew |= need > 0
            if request.id not in self._kv.on_device:
                self._ranking.add(request)
            self._kv.grow(request.id, to_hold)
            self.pressure.started(request)
            if self.reserve is not None:
                self.reserve.started(request.id)
        return found

    def bring_back(self, request: Request, builder: StepBuilder, *, evict: bool) -> Found:
        """Find device blocks for KV on the host; begin the upload if blocks and link are free.

        Args:
            evict: whether other requests may be evicted for it.
        """
        need = self._kv.num_blocks(request.id)
        if not self._link_is_free("upload", need):
            builder.claimed += need
            return "later"
        found = self._find(need, request, builder, evict)
        if found == "now":
            self._upload(request, builder)
        return found

    def work_ahead(self, builder: StepBuilder) -> None:
        """Offload proactively to free blocks for new requests, and upload requests that will run soon."""
        if self.reserve is None or self.pressure.active:
            return
        kv, reserve = self._kv, self.reserve.blocks(builder.now)
        batch = {item.request.id for item in builder.items}
        if self._unclaimed(builder) < reserve:
            for _, victim in self._last_to_run(builder):
                needed = kv.blocks_for(victim.num_computed)
                if self._unclaimed(builder) >= reserve or needed > kv.host_available:
                    break  # no KV is discarded proactively
                idle = victim.id in kv.on_device and victim.id not in batch
                if idle and self._may_offload(victim):
                    self._evict(victim, builder)
        # Leave a margin: each request of the batch may need one more block in the next steps.
        margin = reserve + self._max_batch_size + builder.claimed
        for request in builder.next_up:
            need = kv.num_blocks(request.id)
            if kv.device.num_free - need < margin or not self._link_is_free("upload", need):
                return
            if request.id in kv.on_host:
                self._upload(request, builder)

    def in_order(self, limit: int) -> list[Request]:
        """Return the first ``limit`` requests on the device, those that run sooner in front."""
        return list(islice(self._ranking.ascending(), limit))

    # -- finding blocks --------------------------------------------------------------------------------

    def _find(self, need: int, request: Request, builder: StepBuilder, evict: bool) -> Found:
        """Find ``need`` device blocks for the request; if allowed, evict requests that run after it."""
        free, unclaimed = self._kv.device.num_free, self._unclaimed(builder)
        if need <= min(free, unclaimed):
            return "now"
        builder.short = True
        if not evict:
            return "never"
        enough = need <= unclaimed or self._make_free(need - unclaimed, request, builder)
        if enough and need <= min(self._kv.device.num_free, self._unclaimed(builder)):
            return "now"
        if not enough:
            builder.claimed = self._kv.device.num_free + self._kv.incoming
            return "never"
        builder.claimed += need
        return "later"

    def _make_free(self, need: int, request: Request, builder: StepBuilder) -> bool:
        """Evict requests after ``request`` in the order until ``need`` more blocks are free or being freed.

        If the link is busy, fewer requests are offloaded in this step; the next steps continue.

        Returns False, without evicting any request, if there are not enough blocks.
        """
        if self.reserves_max_len:
            return False
        may_drop = self._may_drop(request, builder)
        if self._offloads and not may_drop and not self._link_is_free("offload", 1):
            return True  # wait: offloads already in flight will free blocks
        place, host = self.pressure.priority(request), self._kv.host_available
        offloaded: list[Request] = []
        dropped: list[Request] = []
        skipped = 0
        for victim in self._leaving_order(place, builder):
            if need <= 0 or skipped > 2 * self._max_batch_size:
                break
            blocks = self._kv.blocks_for(victim.num_computed)
            recompute = self._recompute_is_faster(victim) and not self.pressure.active
            if self._offloads and blocks <= host and not recompute:
                host -= blocks
                offloaded.append(victim)
            elif may_drop or recompute:
                dropped.append(victim)
            else:
                skipped += 1
                continue
            need -= self._kv.num_blocks(victim.id)
        if need > 0:
            return False
        for victim in dropped:
            self._drop(victim, builder)
        for victim in offloaded:
            if not self._may_offload(victim):
                break
            self._evict(victim, builder)
        return True

    def _may_drop(self, request: Request, builder: StepBuilder) -> bool:
        """Whether computed KV of others may be discarded to find blocks for the request.

        It may for the next token of a request on the device, which could not continue otherwise. It may not
        for a start or an upload: with a full host pool, the queues would then discard and recompute every
        request again and again. The mode ``recompute`` discards KV for these, too.
        """
        if request.id in self._kv.on_device:
            return True
        first = not (builder.items or builder.uploads or builder.claimed)
        return self._offloading == "recompute" and first and not self.pressure.active

    def _leaving_order(self, place: Priority, builder: StepBuilder) -> Iterator[Request]:
        """Yield the requests on the device after ``place`` in the order of their eviction.

        The last request of the order is evicted first. Under proactive offloading, the last requests are
        sorted by expected wait, longest first. Requests that were uploaded and have not run since are evicted
        last, because their upload would be wasted.
        """
        unused = []
        for priority, request in self._last_to_run(builder):
            if request.id not in self._kv.on_device:
                continue  # evicted earlier in this step
            if priority <= place:
                if self.reserve is None:
                    break
                continue
            if request.id in self._unused:
                unused.append(request)
            else:
                yield request
        yield from unused

    def _last_to_run(self, builder: StepBuilder) -> Iterable[tuple[Priority, Request]]:
        """Return the requests on the device, the last one to run first.

        Under proactive offloading: only the last ones of the order, longest expected wait (ENST) first.
        """
        if self.reserve is None:
            return self._ranking.descending()
        if builder.leaving is None:
            last = islice(self._ranking.descending(), max(MIN_CHOICE, self._max_batch_size))
            waits = [(self._policy.expected_wait(r, builder.now), priority, r) for priority, r in last]
            waits.sort(key=lambda entry: entry[:2], reverse=True)
            builder.leaving = [(priority, request) for _, priority, request in waits]
        return builder.leaving

    def _unclaimed(self, builder: StepBuilder) -> int:
        """Return the device blocks that are free or being freed and not claimed by an earlier request."""
        return self._kv.device.num_free + self._kv.incoming - builder.claimed

    # -- moving KV -------------------------------------------------------------------------------------

    @property
    def _offloads(self) -> bool:
        return self._offloading not in ("none", "recompute")

    def _watched(self) -> Watched:
        """Return the pools that matter for pressure: the host pool only if KV is usually offloaded."""
        if self._offloading == "none":
            return "nothing"
        offloads = self._offloads and self._kv.host.num_blocks > 0
        if self._offloading == "auto" and self._cost is not None:
            typical = 2 * self._kv.blocks_for(TYPICAL_CONTEXT) * self._block_bytes
            offloads = offloads and offload_is_faster(
                self._cost, typical, TYPICAL_CONTEXT, self._max_batch_size
            )
        return "both" if offloads else "device"

    def _recompute_is_faster(self, victim: Request) -> bool:
        """Whether recomputing the victim's KV is faster than copying it; always False except in ``auto``."""
        if self._offloading != "auto" or self._cost is None:
            return False
        offloaded = self._kv.unsaved_blocks(victim.id, victim.num_computed)
        uploaded = self._kv.blocks_for(victim.num_computed)
        kv_bytes = (offloaded + uploaded) * self._block_bytes
        return not offload_is_faster(self._cost, kv_bytes, victim.num_computed, self._max_batch_size)

    def _link_is_free(self, direction: Direction, blocks: int) -> bool:
        """Whether ``blocks`` more blocks may be copied now. An idle link accepts a copy of any size."""
        in_flight = self._kv.in_flight[direction]
        return in_flight == 0 or in_flight + blocks <= self._max_in_flight

    def _may_offload(self, victim: Request) -> bool:
        unsaved = self._kv.unsaved_blocks(victim.id, victim.num_computed)
        return unsaved == 0 or self._link_is_free("offload", unsaved)

    def _evict(self, victim: Request, builder: StepBuilder) -> None:
        """Offload the victim's KV to the host."""
        if victim.num_computed == 0:
            self._drop(victim, builder)
            return
        self._leave_device(victim)
        transfer = self._kv.begin_offload(victim.id, victim.num_computed)
        builder.moved = True
        if transfer is None:
            return
        builder.offloads.append(transfer)
        self._count(victim, len(transfer.source))
        self._counters.offloaded_blocks += len(transfer.source)

    def _drop(self, victim: Request, builder: StepBuilder) -> None:
        """Discard the victim's KV; it is recomputed later."""
        self._kv.release(victim.id)
        self._leave_device(victim)
        self.pressure.ended(victim.id)
        self.pressure.work.ended(victim)
        self._counters.recomputed_tokens += victim.num_computed
        self.pressure.budget.discarded(victim.num_computed)
        victim.num_computed = 0
        builder.moved = True

    def _upload(self, request: Request, builder: StepBuilder) -> None:
        transfer = self._kv.begin_upload(request.id)
        builder.uploads.append(transfer)
        builder.moved = True
        self._count(request, len(transfer.source))
        self._counters.uploaded_blocks += len(transfer.source)

    def _count(self, request: Request, blocks: int) -> None:
        request.bytes_moved += blocks * self._block_bytes

    def _leave_device(self, request: Request) -> None:
        self._ranking.discard(request.id)
        self._unused.discard(request.id)


def blocks_in_flight(max_batch_size: int, block_bytes: int, cost: CostModel | None) -> int:
    """Return the maximum number of blocks in flight in one direction. A single request may exceed it."""
    if cost is None or block_bytes == 0:
        return UNMEASURED_BLOCKS * max_batch_size
    full = StepShape(decode_requests=max_batch_size, decode_context=max_batch_size * TYPICAL_CONTEXT)
    seconds = STEPS_IN_FLIGHT * cost.step_seconds(full)
    return max(1, int(seconds * cost.copy_bytes_per_second / block_bytes))
