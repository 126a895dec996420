"""Which requests hold KV on the device, which leave for lack of blocks, and which come back. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Literal

from fgengine.config import Offloading
from fgengine.cost import CostModel, StepShape
from fgengine.kv.manager import KVManager
from fgengine.kv.transfer import Direction
from fgengine.plan import StepPlan
from fgengine.request import Request
from fgengine.scheduling.offload import ArrivalReserve, swap_is_sooner
from fgengine.scheduling.policy import Policy, Priority
from fgengine.scheduling.pressure import Pressure, Watched
from fgengine.scheduling.ranking import Ranking
from fgengine.scheduling.step_builder import Counters, StepBuilder

Found = Literal["now", "later", "never"]
"""Whether device blocks were found. ``later``: they are being freed, or the link is busy, and no later
request may take them; ``never``: not in this step, whatever is evicted."""

STEPS_IN_FLIGHT = 2
"""Copies in flight, in each direction, are bounded by what the link carries in so many full decode steps.
More would not arrive sooner, and would hold blocks at both tiers meanwhile."""
TYPICAL_CONTEXT = 512
"""Tokens of context of a request in such a step."""
MIN_CHOICE = 8
"""Under proactive offloading, the requests whose expected waits are compared, where a batch holds fewer."""
UNMEASURED_BLOCKS = 4
"""The bound without a cost model: blocks for each place in the batch."""


class KVResidency:
    """The KV pools as the scheduler sees them."""

    def __init__(
        self,
        policy: Policy,
        kv: KVManager,
        block_bytes: int,
        counters: Counters,
        offloading: Offloading,
        cost: CostModel | None,
    ) -> None:
        """``offloading="auto"`` takes a cost model. Raises ValueError when there is none."""
        if offloading == "auto" and cost is None:
            raise ValueError("offloading auto needs a profile, to know what copies and recomputation take")
        self._policy = policy
        self._kv = kv
        self._block_bytes = block_bytes
        self._max_batch_size = policy.context.max_batch_size
        self._counters = counters
        self._offloading = offloading
        self._cost = cost
        self._most_in_flight = blocks_in_flight(self._max_batch_size, block_bytes, cost)
        self.pressure = Pressure(policy, kv, counters, self._watched(), cost)
        self._ranking = Ranking(self.pressure.priority)
        """The requests on the device, those that leave first at the end."""
        self._unused: set[str] = set()
        """Those on the device that were uploaded and have not run since."""
        self.reserve = ArrivalReserve(kv.device.num_blocks) if offloading == "proactive" else None

    @property
    def booked(self) -> bool:
        """Every admitted request holds blocks for its longest: nothing is evicted."""
        return self._offloading == "none"

    @property
    def blocking(self) -> bool:
        """No step runs while KV is being copied."""
        return self._offloading == "blocking"

    def begin_step(self, now: float, num_unfinished: int) -> None:
        if self.pressure.update(now, num_unfinished):
            self._ranking.rebuild()

    def arrived(self, request: Request, now: float) -> None:
        if self.reserve is not None:
            self.reserve.arrived(request.id, self._kv.blocks_for(request.prompt_len), now)

    def ran(self, batch: Iterable[Request]) -> None:
        """These are in a batch, and their priorities may have changed with it."""
        on_device = self._kv.on_device
        self._ranking.touch(request for request in batch if request.id in on_device)

    def ended_step(self, plan: StepPlan, now: float) -> None:
        """The plan was executed."""
        self.ran(item.request for item in plan.items)
        self.pressure.ended_step(now)

    def uses(self, batch: Collection[str]) -> bool:
        """The batch just made is of these. Whether one of them runs for the first time since its upload."""
        used = self._unused.intersection(batch)
        self._unused -= used
        return bool(used)

    def copied(self, request: Request) -> None:
        """A copy of its KV is done."""
        if request.id in self._kv.on_device:
            self._ranking.add(request)
            self._unused.add(request.id)

    def forget(self, request: Request) -> None:
        """Free what it holds, wherever that is."""
        self._kv.release(request.id)
        self._leave_device(request)
        self.pressure.ended(request.id)
        if self.reserve is not None:
            self.reserve.started(request.id)

    def ended(self, request: Request, *, last: bool) -> None:
        """The request is over; ``last``: no other is left."""
        self.forget(request)
        self.pressure.work.ended(request)
        if last:
            self.pressure.work.idle()

    def admit(self, request: Request, reached: int, builder: StepBuilder, *, evict: bool) -> Found:
        """Device blocks for the request's first ``reached`` tokens, taken if they are free."""
        to_hold = request.max_len - 1 if self.booked else reached
        need = self._kv.missing(request.id, to_hold)
        started = self.pressure.has_started(request)
        if not started and not self.pressure.may_start(request):
            builder.short = True
            return "never"
        if started and need <= self._kv.device.num_free:
            found: Found = "now"  # those who wait for more blocks than are free gain nothing by its waiting
        elif not started and self.pressure.active:
            margin = self._max_batch_size if self._kv.on_device else 0  # the started ones grow
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
        """Device blocks for KV that is on the host; its upload begins if they are free and the link is."""
        need = self._kv.num_blocks(request.id)
        if not self._link_is_free("upload", need):
            builder.claimed += need
            return "later"
        found = self._find(need, request, builder, evict)
        if found == "now":
            self._upload(request, builder)
        return found

    def work_ahead(self, builder: StepBuilder) -> None:
        """Proactive offloading: free blocks for arrivals that wait, and upload ahead into free ones."""
        if self.reserve is None or self.pressure.active:
            return
        kv, reserve = self._kv, self.reserve.blocks(builder.now)
        batch = {item.request.id for item in builder.items}
        if self._unclaimed(builder) < reserve:
            for _, victim in self._last_to_run(builder):
                needed = kv.blocks_for(victim.num_computed)
                if self._unclaimed(builder) >= reserve or needed > kv.host_available:
                    break  # ahead of need no work is thrown away
                idle = victim.id in kv.on_device and victim.id not in batch
                if idle and self._may_offload(victim):
                    self._evict(victim, builder)
        # The batch grows by up to one block a member in the coming steps.
        margin = reserve + self._max_batch_size + builder.claimed
        for request in builder.next_up:
            need = kv.num_blocks(request.id)
            if kv.device.num_free - need < margin or not self._link_is_free("upload", need):
                return
            if request.id in kv.on_host:
                self._upload(request, builder)

    def in_order(self, most: int) -> list[Request]:
        """The first ``most`` requests on the device, those that run sooner in front."""
        return list(islice(self._ranking.first_first(), most))

    # -- finding blocks --------------------------------------------------------------------------------

    def _find(self, need: int, request: Request, builder: StepBuilder, evict: bool) -> Found:
        """``need`` device blocks for the request, at the cost of those that run after it."""
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
        """Evict requests behind ``request`` until ``need`` more blocks are free or on their way. False: there
        are not enough; nothing is evicted then.

        Where the link is busy, fewer leave in this step; the next ones go on.
        """
        if self.booked:
            return False
        may_drop = self._may_drop(request, builder)
        if self._offloads and not may_drop and not self._link_is_free("offload", 1):
            return True  # some are leaving already
        place, host = self.pressure.priority(request), self._kv.host_available
        offloaded: list[Request] = []
        dropped: list[Request] = []
        skipped = 0
        for victim in self._leaving_order(place, builder):
            if need <= 0 or skipped > 2 * self._max_batch_size:
                break
            blocks = self._kv.blocks_for(victim.num_computed)
            sooner = self._recompute_is_sooner(victim) and not self.pressure.active
            if self._offloads and blocks <= host and not sooner:
                host -= blocks
                offloaded.append(victim)
            elif may_drop or sooner:
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
        """Whether computed KV may be thrown away for it: for the next token of a request on the device, which
        could not go on otherwise. Never for a start or an upload, else a full host pool would have every
        request computed again at each turn of the queues; but mode ``recompute`` is just that."""
        if request.id in self._kv.on_device:
            return True
        first = not (builder.items or builder.uploads or builder.claimed)
        return self._offloading == "recompute" and first and not self.pressure.active

    def _leaving_order(self, place: Priority, builder: StepBuilder) -> Iterator[Request]:
        """The requests on the device behind ``place``, those that leave first in front: the last in the
        order, or under proactive offloading, of the last ones, those with the longest expected wait. One that
        was uploaded and has not run since leaves after all others: its copy would have been for nothing.
        """
        unused = []
        for priority, request in self._last_to_run(builder):
            if request.id not in self._kv.on_device:
                continue  # it left earlier in this step
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
        if self.reserve is None:
            return self._ranking.last_first()
        if builder.leaving is None:
            most = max(MIN_CHOICE, self._max_batch_size)
            last = islice(self._ranking.last_first(), most)
            waits = [(self._policy.expected_wait(r, builder.now), priority, r) for priority, r in last]
            waits.sort(key=lambda entry: entry[:2], reverse=True)
            builder.leaving = [(priority, request) for _, priority, request in waits]
        return builder.leaving

    def _unclaimed(self, builder: StepBuilder) -> int:
        """Device blocks that are free or on their way and wanted by no request before."""
        return self._kv.device.num_free + self._kv.incoming - builder.claimed

    # -- moving KV -------------------------------------------------------------------------------------

    @property
    def _offloads(self) -> bool:
        return self._offloading not in ("none", "recompute")

    def _watched(self) -> Watched:
        if self._offloading == "none":
            return "nothing"
        swaps = self._offloads and self._kv.host.num_blocks > 0
        if self._offloading == "auto" and self._cost is not None:
            typical = 2 * self._kv.blocks_for(TYPICAL_CONTEXT) * self._block_bytes
            swaps = swaps and swap_is_sooner(self._cost, typical, TYPICAL_CONTEXT)
        return "both" if swaps else "device"

    def _recompute_is_sooner(self, victim: Request) -> bool:
        """Asked by mode ``auto`` only; the others have their answer."""
        if self._offloading != "auto" or self._cost is None:
            return False
        copied = self._kv.unsaved_blocks(victim.id, victim.num_computed)
        back = self._kv.blocks_for(victim.num_computed)
        kv_bytes = (copied + back) * self._block_bytes
        return not swap_is_sooner(self._cost, kv_bytes, victim.num_computed)

    def _link_is_free(self, direction: Direction, blocks: int) -> bool:
        """Whether so many more blocks may be copied: a first copy always, whatever its size."""
        in_flight = self._kv.in_flight[direction]
        return in_flight == 0 or in_flight + blocks <= self._most_in_flight

    def _may_offload(self, victim: Request) -> bool:
        unsaved = self._kv.unsaved_blocks(victim.id, victim.num_computed)
        return unsaved == 0 or self._link_is_free("offload", unsaved)

    def _evict(self, victim: Request, builder: StepBuilder) -> None:
        """Its KV goes to the host."""
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
        """Its KV is thrown away, to be computed again."""
        self._kv.release(victim.id)
        self._leave_device(victim)
        self.pressure.ended(victim.id)
        self.pressure.work.ended(victim)
        self._counters.recomputed_tokens += victim.num_computed
        self.pressure.budget.thrown_away(victim.num_computed)
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
    """The most blocks that are copied at one time in one direction, unless a single request has more."""
    if cost is None or block_bytes == 0:
        return UNMEASURED_BLOCKS * max_batch_size
    full = StepShape(decode_requests=max_batch_size, decode_context=max_batch_size * TYPICAL_CONTEXT)
    seconds = STEPS_IN_FLIGHT * cost.step_seconds(full)
    return max(1, int(seconds * cost.copy_bytes_per_second / block_bytes))
