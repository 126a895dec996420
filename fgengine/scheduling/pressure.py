"""Pressure: a state in which no request starts and the started requests are finished first. Pure.

A preemptive policy starts many requests, and each started request holds KV. In a long overload both pools
become full. Each further start then discards computed KV, soon more work is discarded than done, and the
queue never gets shorter. Far above capacity there is a second problem: all requests get a few tokens and none
finishes.

Pressure is active in three cases: memory is nearly full, too much work was discarded recently
(``RecomputeBudget``), or too much work is in unfinished requests (``WorkInProgress``). While it is active,
the started requests run in order of arrival, regardless of the policy.

The FastServe paper has no such state. ``--admission eager`` is like the paper: the limits of memory and of
unfinished work do not apply, and requests start until both pools are full.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from sortedcontainers import SortedDict

from fgengine.config import Admission
from fgengine.cost import CostModel
from fgengine.kv.manager import KVManager
from fgengine.plan import StepPlan
from fgengine.request import Request
from fgengine.scheduling.policy import Policy, Priority
from fgengine.scheduling.step_builder import Counters
from fgengine.scheduling.work_in_progress import WorkInProgress

TOKENS_PER_DISCARDED = 25
"""Computed tokens that pay for one discarded token: at most 4% of the work may be discarded."""
HOST_NEARLY_FULL = 0.2
"""Pressure begins if at most this share of the host pool is available and the device pool is full."""
ENOUGH_FREE = 0.3
"""Pressure ends when at least this share of both pools together is free."""
EAGER_ENOUGH_FREE = 0.02
"""The same with ``--admission eager``; there pressure begins only when both pools are full."""
GROWTH_BLOCKS = 2
"""The device pool is full if at most this many blocks are free for each request of a full batch."""
DEVICE_NEARLY_FULL = 0.15
"""A small device pool is full if at most this share of it is free."""
Watched = Literal["nothing", "device", "both"]
"""The pools whose free blocks count: both; only the device pool if nothing is offloaded; none if no request
is ever evicted, because then no work can be lost."""


class RecomputeBudget:
    """A debt of tokens that limits how much computed KV is discarded.

    Each discarded token adds ``TOKENS_PER_DISCARDED`` tokens of debt; each computed token pays one.

    Output lengths are unknown, so a request that fits now may later force the eviction of another one. This
    is usually worth it because it fills the batch, but only without debt. In debt, a request starts only if
    memory is sufficient for it and all started requests at their maximum lengths.
    """

    def __init__(self) -> None:
        self._unpaid = 0
        """Tokens to compute until the debt is paid."""

    @property
    def in_debt(self) -> bool:
        """Whether discarded tokens are not paid yet."""
        return self._unpaid > 0

    def computed(self, tokens: int) -> None:
        """Pay for ``tokens`` computed tokens."""
        self._unpaid = max(0, self._unpaid - tokens)

    def discarded(self, tokens: int) -> None:
        """Add the debt of ``tokens`` discarded tokens."""
        self._unpaid += TOKENS_PER_DISCARDED * tokens

    def steps_in_debt(self, tokens: int) -> int:
        """Return the number of steps of ``tokens`` tokens each until the debt is paid."""
        return -(-self._unpaid // max(1, tokens))


class Pressure:
    """The state of pressure, and the order in which requests run.

    The order is the policy's; under pressure it is the order of arrival. Call ``update`` before each step;
    ``order`` and ``priority`` then agree until the next call.
    """

    def __init__(
        self,
        policy: Policy,
        kv: KVManager,
        counters: Counters,
        watched: Watched,
        cost: CostModel | None,
        admission: Admission = "guarded",
    ) -> None:
        self._guarded = admission == "guarded"
        self._nearly_full = HOST_NEARLY_FULL if self._guarded else 0.0
        self._enough_free = ENOUGH_FREE if self._guarded else EAGER_ENOUGH_FREE
        self._policy = policy
        self._kv = kv
        self._counters = counters
        self._watched = watched
        self._batch = policy.context.max_batch_size
        self.budget = RecomputeBudget()
        self.work = WorkInProgress(cost if self._guarded else None, self._batch)
        self._full = min(GROWTH_BLOCKS * self._batch, int(DEVICE_NEARLY_FULL * kv.device.num_blocks))
        """The device pool is full if at most this many blocks are free."""
        self.active = False
        self._began = 0.0
        """When pressure last began, seconds."""
        self._seconds_before = 0.0
        """Seconds of pressure before it last began."""
        self._started: Any = SortedDict()
        """Requests with KV at either tier, by (arrival, serial)."""
        self._places: dict[str, tuple[float, int]] = {}
        """(arrival, serial) of each started request, by request id."""
        self._promised_blocks = 0
        """Sum of the blocks that the started requests hold at their maximum lengths."""
        self._capacity = kv.device.num_blocks + (kv.host.num_blocks if watched == "both" else 0)
        self._serial = 0

    @property
    def blocks_until_full(self) -> int | None:
        """Device blocks that may be taken before pressure begins; None if taking blocks cannot begin it."""
        if self.active or not self._host_is_short():
            return None
        return self._device_free - self._full - 1

    def steady_steps(self, tokens: int) -> int | None:
        """Return for how many steps of ``tokens`` decodes the debt affects starts as it does now.

        Returns None if there is no debt.
        """
        if not self.budget.in_debt:
            return None
        # With few requests, ``may_start`` depends on the progress of each, so it can change in every step.
        return 1 if len(self._started) <= self._batch else self.budget.steps_in_debt(tokens)

    def started(self, request: Request) -> None:
        """Record that the request holds KV blocks now."""
        if request.id not in self._places:
            self._serial += 1
            place = self._places[request.id] = (request.arrival, self._serial)
            self._started[place] = request
            self._promised_blocks += _longest(request, self._kv)
            self.work.started(request)

    def ended(self, request_id: str) -> None:
        """Record that the request holds no KV blocks any more."""
        place = self._places.pop(request_id, None)
        if place is not None:
            self._promised_blocks -= _longest(self._started.pop(place), self._kv)

    def has_started(self, request: Request) -> bool:
        """Whether the request holds KV blocks, on the device or on the host."""
        return request.id in self._places

    def may_start(self, request: Request) -> bool:
        """Whether the request may start if its first blocks are free."""
        return not self.budget.in_debt or self._all_could_end(request)

    def update(self, now: float, num_unfinished: int) -> bool:
        """Begin or end pressure for the next step. Returns whether ``active`` changed.

        Args:
            num_unfinished: requests in the system, started or not.
        """
        if self.active:
            self.active = not self._is_relieved()
            return not self.active
        self.active = self._is_short(num_unfinished)
        if self.active:
            self._began, self._seconds_before = now, self._counters.pressure_seconds
        return self.active

    def computed(self, plan: StepPlan, steps: int) -> None:
        """Count the work of a plan that is executed ``steps`` times; several times only if all items decode.

        Call it before the requests that end with the plan are removed, and before the next step is planned.
        The next plan is then the same with and without overlapping steps.
        """
        self.work.computed(plan, steps)
        self.budget.computed(plan.num_tokens * steps)

    def ended_step(self, now: float) -> None:
        """Count the seconds of pressure up to ``now``.

        Called at the end of a step, because the next step may begin much later.
        """
        if self.active:
            self._counters.pressure_seconds = self._seconds_before + now - self._began

    def order(self, now: float) -> Iterator[Request]:
        """Yield the requests lazily, the next one to run first. Use the iterator within one step."""
        return self._by_arrival(now) if self.active else self._policy.order(now)

    def priority(self, request: Request) -> Priority:
        """Return the request's place; places ascend along ``order``."""
        if not self.active:
            return self._policy.priority(request)
        place = self._places.get(request.id)
        return (0.0, *place) if place is not None else (1.0, *self._policy.priority(request))

    def _by_arrival(self, now: float) -> Iterator[Request]:
        yield from self._started.values()
        # The scheduler reads this far only if fewer requests than a batch have started, so few are skipped.
        for request in self._policy.order(now):
            if request.id not in self._places:
                yield request

    @property
    def _device_free(self) -> int:
        return self._kv.device.num_free + self._kv.incoming

    def _host_is_short(self) -> bool:
        if self._watched != "both":
            return self._guarded and self._watched == "device"
        return self._kv.host_available <= self._nearly_full * self._kv.host.num_blocks

    def _all_could_end(self, request: Request) -> bool:
        """Whether memory holds this and all started requests until they end at their maximum lengths."""
        if self._promised_blocks + _longest(request, self._kv) <= self._capacity:
            return True
        if len(self._started) >= self._batch:
            return False
        return peak_blocks([*self._started.values(), request], self._kv.block_size) <= self._capacity

    def _is_short(self, num_unfinished: int) -> bool:
        in_debt = self.budget.in_debt and bool(self._started)
        if in_debt or self.work.is_too_much(num_unfinished):
            return True
        return self._device_free <= self._full and self._host_is_short()

    def _is_relieved(self) -> bool:
        in_debt = self.budget.in_debt and bool(self._started)
        free = self._device_free + (self._kv.host_available if self._watched == "both" else 0)
        return not in_debt and self.work.is_moderate and free >= self._enough_free * self._capacity


def peak_blocks(requests: Sequence[Request], block_size: int) -> int:
    """Return the maximum number of blocks that the requests hold at the same time.

    It assumes that each request generates one token a step up to its maximum length. The maximum is less than
    the sum of all maximum lengths, because short requests end before long ones reach theirs. Source: the
    estimate of LightLLM's scheduler (ASPLOS'25).
    """
    tokens = peak = 0
    left = [(request.max_len - 1 - len(request.tokens), len(request.tokens)) for request in requests]
    for count, (remaining, known) in enumerate(sorted(left, reverse=True), 1):
        tokens += known
        peak = max(peak, tokens + count * remaining)
    return peak // block_size + len(requests)  # each request's last block is partly empty


def _longest(request: Request, kv: KVManager) -> int:
    """Return the blocks of the request's KV at its maximum length; the last token needs no KV."""
    return kv.blocks_for(request.max_len - 1)
