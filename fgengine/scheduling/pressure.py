"""Pressure: the state in which nothing new starts and the started requests are finished first. Pure.

A preemptive policy keeps starting requests, and each started one holds KV. Under a long overload both pools
fill, and then each further start forces computed KV to be thrown away: soon more work is thrown away than
done, and the queue never drains. And far above capacity all requests get a few tokens and none its last.
So there is pressure while memory is nearly full, while thrown-away work is not made up for
(``RecomputeBudget``), and while too much work is in requests that have not ended (``progress``). Under it the
requests that have KV run in order of arrival, whatever the policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from sortedcontainers import SortedDict

from fgengine.cost import CostModel
from fgengine.kv.manager import KVManager
from fgengine.plan import StepPlan
from fgengine.request import Request
from fgengine.scheduling.policy import Policy, Priority
from fgengine.scheduling.step_builder import Counters
from fgengine.scheduling.work_in_progress import WorkInProgress

TOKENS_PER_THROWN = 25
"""Computed tokens that pay for one that was thrown away: a share of 4%."""
HOST_NEARLY_FULL = 0.2
"""Pressure begins when no more than this share of the host pool is available, and the device pool is full."""
ENOUGH_FREE = 0.3
"""Pressure ends when this share of both pools together is free."""
GROWTH_BLOCKS = 2
"""The device pool is full when no more blocks than this are free for each place in the batch."""
DEVICE_NEARLY_FULL = 0.15
"""In small pools: when no more than this share of it is free."""
Watched = Literal["nothing", "device", "both"]
"""The pools whose free blocks decide: both, the device pool where nothing is offloaded, and neither where no
request is ever evicted, so that no work can be lost."""


class RecomputeBudget:
    """A debt of tokens: what is thrown away adds to it, and each computed token pays a share of one.

    Where lengths are unknown, starting a request that fits now may cost another one its KV later. That is
    mostly worth it, since it fills the batch; but only while the debt is paid is it done. In debt a request
    starts only if all that have started could run to their longest.
    """

    def __init__(self) -> None:
        self._unpaid = 0
        """Tokens to compute until the debt is paid."""

    @property
    def in_debt(self) -> bool:
        return self._unpaid > 0

    def computed(self, tokens: int) -> None:
        self._unpaid = max(0, self._unpaid - tokens)

    def thrown_away(self, tokens: int) -> None:
        self._unpaid += TOKENS_PER_THROWN * tokens

    def steps_in_debt(self, tokens: int) -> int:
        """Steps of so many tokens each until the debt is paid."""
        return -(-self._unpaid // max(1, tokens))


class Pressure:
    """The state, and the order in which requests run: the policy's, and under pressure that of arrival.

    ``update`` is called before each step; then ``order`` and ``priority`` agree until the next one.
    """

    def __init__(
        self,
        policy: Policy,
        kv: KVManager,
        counters: Counters,
        watched: Watched,
        cost: CostModel | None,
    ) -> None:
        self._policy = policy
        self._kv = kv
        self._counters = counters
        self._watched = watched
        self._batch = policy.context.max_batch_size
        self.budget = RecomputeBudget()
        self.work = WorkInProgress(cost, self._batch)
        self._full = min(GROWTH_BLOCKS * self._batch, int(DEVICE_NEARLY_FULL * kv.device.num_blocks))
        """Free device blocks at which the pool is full."""
        self.active = False
        self._began = 0.0
        """When the state was last entered."""
        self._seconds_before = 0.0
        """Spent in it before then."""
        self._started: Any = SortedDict()
        """Requests with KV at either tier, by (arrival, serial)."""
        self._places: dict[str, tuple[float, int]] = {}
        self._promised_blocks = 0
        """Blocks that the started requests have at their longest, all together."""
        self._capacity = kv.device.num_blocks + (kv.host.num_blocks if watched == "both" else 0)
        self._serial = 0

    @property
    def blocks_until_full(self) -> int | None:
        """Device blocks that may be taken before pressure begins; None: it cannot begin by taking blocks."""
        if self.active or not self._host_is_short():
            return None
        return self._device_free - self._full - 1

    def steady_steps(self, tokens: int) -> int | None:
        """Steps of so many decodes for which thrown-away work has the same say in starts as now; None: it has
        none."""
        if not self.budget.in_debt:
            return None
        # The peak of a few requests moves with the progress of each, so it is looked at before each step.
        return 1 if len(self._started) <= self._batch else self.budget.steps_in_debt(tokens)

    def started(self, request: Request) -> None:
        """The request holds blocks now."""
        if request.id not in self._places:
            self._serial += 1
            place = self._places[request.id] = (request.arrival, self._serial)
            self._started[place] = request
            self._promised_blocks += _longest(request, self._kv)
            self.work.started(request)

    def ended(self, request_id: str) -> None:
        """The request has no KV any more."""
        place = self._places.pop(request_id, None)
        if place is not None:
            self._promised_blocks -= _longest(self._started.pop(place), self._kv)

    def has_started(self, request: Request) -> bool:
        """Whether the request holds KV blocks, at either tier."""
        return request.id in self._places

    def may_start(self, request: Request) -> bool:
        """Whether the request may start if its first blocks are free."""
        return not self.budget.in_debt or self._all_could_end(request)

    def update(self, now: float, num_unfinished: int) -> bool:
        """Enter or leave the state, with so many requests in the system; whether that changed it."""
        if self.active:
            self.active = not self._is_relieved()
            return not self.active
        self.active = self._is_short(num_unfinished)
        if self.active:
            self._began, self._seconds_before = now, self._counters.pressure_seconds
        return self.active

    def computed(self, plan: StepPlan, steps: int) -> None:
        """The plan is executed ``steps`` times, each time but the first for decodes.

        Told before the requests that end with it are taken out, and, where steps overlap, before the next is
        planned, so that the next is planned alike with and without overlap.
        """
        self.work.computed(plan, steps)
        self.budget.computed(plan.num_tokens * steps)

    def ended_step(self, now: float) -> None:
        """Count the seconds since pressure began. Not where a step begins: no step may follow for long."""
        if self.active:
            self._counters.pressure_seconds = self._seconds_before + now - self._began

    def order(self, now: float) -> Iterator[Request]:
        """The requests, the next one to run first. Lazy; used within one step."""
        return self._by_arrival(now) if self.active else self._policy.order(now)

    def priority(self, request: Request) -> Priority:
        """The request's place: ascending along ``order``."""
        if not self.active:
            return self._policy.priority(request)
        place = self._places.get(request.id)
        return (0.0, *place) if place is not None else (1.0, *self._policy.priority(request))

    def _by_arrival(self, now: float) -> Iterator[Request]:
        yield from self._started.values()
        # Fewer have started than a batch holds where this is read on to here, so few are left out.
        for request in self._policy.order(now):
            if request.id not in self._places:
                yield request

    @property
    def _device_free(self) -> int:
        return self._kv.device.num_free + self._kv.incoming

    def _host_is_short(self) -> bool:
        if self._watched != "both":
            return self._watched == "device"
        return self._kv.host_available <= HOST_NEARLY_FULL * self._kv.host.num_blocks

    def _all_could_end(self, request: Request) -> bool:
        """Whether memory is enough for the started requests and this one until they end at their longest."""
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
        return not in_debt and self.work.is_moderate and free >= ENOUGH_FREE * self._capacity


def peak_blocks(requests: Sequence[Request], block_size: int) -> int:
    """Blocks at the moment when these hold most, if all run on to their longest, a token each a step.

    They do not all hold their most at one time: the short ones have ended when the long ones are at their
    longest (the estimate of LightLLM's scheduler, ASPLOS'25).
    """
    tokens = peak = 0
    left = [(request.max_len - 1 - len(request.tokens), len(request.tokens)) for request in requests]
    for count, (remaining, known) in enumerate(sorted(left, reverse=True), 1):
        tokens += known
        peak = max(peak, tokens + count * remaining)
    return peak // block_size + len(requests)  # each one's last block is partly empty


def _longest(request: Request, kv: KVManager) -> int:
    """Blocks of the request's KV when it ends at its longest: its last token needs none."""
    return kv.blocks_for(request.max_len - 1)
