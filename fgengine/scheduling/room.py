"""Whose KV is on the device, who leaves for want of room, and who comes back (section 5). Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from fgengine.config import Offloading
from fgengine.cost import CostModel
from fgengine.kv.manager import KVManager, Where
from fgengine.request import Request
from fgengine.scheduling.draft import Counters, Draft, Limits
from fgengine.scheduling.offload import ArrivalReserve, swap_is_sooner
from fgengine.scheduling.policy import Policy, Priority

Found = Literal["now", "later", "never"]


class Room:
    """The device pool as the scheduler sees it."""

    def __init__(
        self,
        policy: Policy,
        kv: KVManager,
        limits: Limits,
        counters: Counters,
        offloading: Offloading,
        cost: CostModel | None,
    ) -> None:
        """``offloading="auto"`` takes a cost model. Raises ValueError when there is none."""
        if offloading == "auto" and cost is None:
            raise ValueError("offloading auto needs a profile, to know what copies and recomputation take")
        self._policy = policy
        self._kv = kv
        self._limits = limits
        self._counters = counters
        self._offloading = offloading
        self._cost = cost
        self.resident: dict[str, Request] = {}
        """Those whose KV is on the device and at rest."""
        self.swapped: dict[str, Request] = {}
        """Those whose KV is on the host and at rest."""
        self.reserve = ArrivalReserve(kv.device.num_blocks) if offloading == "proactive" else None

    @property
    def booked(self) -> bool:
        """Whoever is admitted has the room for its longest: nobody is evicted."""
        return self._offloading == "none"

    def arrived(self, request: Request, now: float) -> None:
        if self.reserve is not None:
            self.reserve.arrived(self._kv.blocks_for(request.prompt_len), now)

    def rests(self, request: Request) -> None:
        """A copy of its KV is done."""
        where = self._kv.where(request.id)
        if where is Where.DEVICE:
            self.resident[request.id] = request
        elif where is Where.HOST:
            self.swapped[request.id] = request

    def forget(self, request: Request) -> None:
        """Free what it holds, wherever that is."""
        self._kv.release(request.id)
        self.resident.pop(request.id, None)
        self.swapped.pop(request.id, None)

    def admit(self, request: Request, reached: int, draft: Draft, *, evict: bool) -> Found:
        """Room for the request's first ``reached`` tokens, taken if it is to be had now."""
        to_hold = request.max_len - 1 if self.booked else reached
        found = self._make(self._kv.missing(request.id, to_hold), request, draft, evict)
        if found == "now":
            self._kv.grow(request.id, to_hold)
            self.resident[request.id] = request
        return found

    def bring_back(self, request: Request, draft: Draft, *, evict: bool) -> Found:
        """Room on the device for KV that rests on the host; its upload begins if there is room now."""
        found = self._make(self._kv.num_blocks(request.id), request, draft, evict)
        if found == "now":
            self._upload(request, draft)
        return found

    def keep_reserve(self, draft: Draft) -> None:
        """Proactive swapping: keep the reserve's blocks free for arrivals; upload early into what is over."""
        if self.reserve is None:
            return
        kv, reserve = self._kv, self.reserve.blocks(draft.now)
        if kv.device.num_free + kv.incoming - draft.claimed < reserve:
            batch = {item.request.id for item in draft.items}
            idle = self._by_wait([r for r in self.resident.values() if r.id not in batch], draft.now)
            while idle and kv.device.num_free + kv.incoming - draft.claimed < reserve:
                victim = idle.pop()[2]
                if kv.num_blocks(victim.id) > kv.host.num_free:
                    return  # proactively throwing work away would gain nothing
                self._evict(victim, draft)
        # A block a batch member for the growth of the coming steps.
        margin = reserve + self._limits.max_batch_size + draft.claimed
        if not self.swapped or kv.device.num_free <= margin:
            return
        for _, _, request in self._by_wait(self.swapped.values(), draft.now):
            if kv.device.num_free - kv.num_blocks(request.id) < margin:
                return
            self._upload(request, draft)

    def _make(self, need: int, request: Request, draft: Draft, evict: bool) -> Found:
        """Find ``need`` device blocks for the request at the cost of those that run after it.

        "later": they are on their way and kept for it; "never": not in this step, whoever leaves.
        """
        kv = self._kv
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

    def _leaving(self, need: int, request: Request, draft: Draft, may_drop: bool) -> list[Request] | None:
        """Who leaves for ``need`` more blocks, all of them behind ``request``; None: there are not enough."""
        if self.booked:
            return None if need > 0 else []
        if draft.victims is None:
            draft.victims = self._by_wait(self.resident.values(), draft.now)
        place = self._policy.priority(request)
        leaving: list[Request] = []
        host_free = self._kv.host.num_free
        for _, priority, victim in reversed(draft.victims):
            if need <= 0:
                break
            if priority <= place:
                continue
            blocks = self._kv.num_blocks(victim.id)
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
        policy, ahead = self._policy, self.reserve is not None
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
        return not swap_is_sooner(self._cost, blocks * self._limits.block_bytes, victim.num_computed)

    def _evict(self, victim: Request, draft: Draft) -> None:
        blocks = self._kv.num_blocks(victim.id)
        del self.resident[victim.id]
        if self._swaps(victim, blocks, self._kv.host.num_free):
            draft.offloads.append(self._kv.begin_offload(victim.id))
            victim.bytes_moved += blocks * self._limits.block_bytes
            self._counters.offloaded_blocks += blocks
        else:
            self._kv.release(victim.id)
            self._counters.recomputed_tokens += victim.num_computed
            victim.num_computed = 0
            draft.dropped = True

    def _upload(self, request: Request, draft: Draft) -> None:
        blocks = self._kv.num_blocks(request.id)
        del self.swapped[request.id]
        draft.uploads.append(self._kv.begin_upload(request.id))
        request.bytes_moved += blocks * self._limits.block_bytes
        self._counters.uploaded_blocks += blocks
