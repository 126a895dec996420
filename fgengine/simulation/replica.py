"""One simulated replica: an engine on a virtual clock. Pure.

It uses the same scheduler, policy and KV manager as the real engine. Steps between which nothing can change
are processed at once: the scheduler returns how many steps its last plan holds (``Scheduler.plan_lifetime``),
and the cost model predicts how long each step takes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

from fgengine.clock import VirtualClock
from fgengine.cost import CostModel, StepShape
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request
from fgengine.scheduling.refusal import RequestRefused, check_needs_no_logits
from fgengine.scheduling.scheduler import Scheduler
from fgengine.simulation.copying import SimulatedCopyEngine


class Completion(NamedTuple):
    """A request that has ended, at ``request.phase_since``."""

    request: Request
    token_times: Sequence[float]
    """Time of each output token, seconds; empty if times are not recorded."""
    refusal: RequestRefused | None = None
    """Why the request was not served; it has no tokens then. None: it was served."""


class Replica:
    """A simulated engine.

    Between two calls it is at the beginning of a sequence of steps that ends at ``next_at``. An arrival may
    make the sequence shorter.
    """

    def __init__(self, scheduler: Scheduler, cost: CostModel, *, keep_token_times: bool = False) -> None:
        self.scheduler = scheduler
        self.cost = cost
        self.clock = VirtualClock()
        self.copies = SimulatedCopyEngine(
            self.clock, scheduler.limits.block_bytes, cost.copy_bytes_per_second
        )
        self.next_at = math.inf
        """Time of the next event, seconds; infinite if there is none before the next request."""
        self.copy_wait_seconds = 0.0
        """Seconds in which nothing ran because every request waited for a copy, as in ``Work``."""
        self.outstanding_seconds = 0.0
        """Predicted machine time of the unfinished requests, seconds."""
        self._inbox: list[Request] = []
        """Requests that arrived during a step; they are added at its end."""
        self._items: Sequence[PlanItem] = ()
        """The items of the running plan."""
        self._durations: list[float] = []
        """Duration of each of the plan's steps, seconds."""
        self._ends: list[float] = []
        """End of each of the plan's steps, seconds."""
        self._steps = 0
        """Number of steps until ``next_at``."""
        self._token_times: dict[str, list[float]] | None = {} if keep_token_times else None

    @property
    def num_unfinished(self) -> int:
        """Number of unfinished requests."""
        return len(self.scheduler.requests) + len(self._inbox)

    def receive(self, request: Request) -> None:
        """Receive a request at its ``arrival``, which must not be after ``next_at``.

        The running step is not interrupted. The sequence of steps now ends with that step.
        """
        self._inbox.append(request)
        self.outstanding_seconds += self._share(request)
        if self._steps:
            last = bisect_left(self._ends, request.arrival, 0, self._steps - 1)
            self._steps = last + 1
            self.next_at = self._ends[last]
        elif self.next_at == math.inf:
            self.next_at = request.arrival

    def advance(self) -> list[Completion]:
        """Advance the clock to ``next_at`` and plan the next steps. Returns the requests that ended.

        Raises RuntimeError if there is work, but nothing can run and nothing is being copied.
        """
        now = self.next_at
        self.clock.advance_to(now)
        endings = self._end_steps(now) if self._steps else []
        endings += [refused for request in self._inbox if (refused := self._add(request, now))]
        self._inbox.clear()
        for request in self.scheduler.expire(now):
            endings.append(Completion(request, (), self.scheduler.queue.timeout_error(now)))
        self.scheduler.copied(self.copies.done())
        for ending in endings:
            self.outstanding_seconds -= self._share(ending.request)
        self._plan(now)
        return endings

    def _add(self, request: Request, now: float) -> Completion | None:
        """Add a request to the scheduler. Returns its completion if it is refused, else None."""
        try:
            check_needs_no_logits(request.params)
            self.scheduler.add(request, now)
        except RequestRefused as refusal:
            request.finish("error", now)
            return Completion(request, (), refusal)
        return None

    def _plan(self, now: float) -> None:
        self._steps, self.next_at = 0, math.inf
        if not self.scheduler.has_work and not self.scheduler.kv.transfers_in_flight:
            self.outstanding_seconds = 0.0  # remove the accumulated rounding error
            return
        plan = self.scheduler.schedule(now)
        for transfer in (*plan.uploads, *plan.offloads):
            self.copies.submit(transfer)
        if plan.items:
            self._begin_steps(plan, now)
        elif self.scheduler.kv.transfers_in_flight:
            self.next_at = self.copies.next_end
            if self.scheduler.has_work:
                self.copy_wait_seconds += self.next_at - now
        elif self.scheduler.has_work:
            raise RuntimeError(
                "the scheduler is stuck: there is work, yet nothing runs and nothing is copied"
            )

    def _begin_steps(self, plan: StepPlan, now: float) -> None:
        """Begin as many steps as the plan holds, at most up to the first step that ends after a copy.

        Times are added in the same order as in an engine that takes every step, so that rounding is the same.
        """
        lifetime = self.scheduler.plan_lifetime(now)
        shape = StepShape.of_plan(plan)
        first = self.cost.step_seconds(shape)
        durations, until = [first], min(lifetime.until, self.copies.next_end, self.scheduler.queue.deadline)
        if lifetime.steps > 1 and now + first < until:
            # Steps only become longer, so at most this number of steps begins before ``until``.
            limit = lifetime.steps
            if until < math.inf:
                limit = min(limit, int((until - now) / first) + 2)
            context, growth = shape.decode_context, shape.decode_requests
            per_token = self.cost.decode_context
            constant = self.cost.step_seconds(replace(shape, decode_context=0))
            durations += [constant + per_token * (context + growth * i) for i in range(1, limit)]
        ends = list(accumulate(durations, initial=now))[1:]
        steps = min(len(ends), bisect_left(ends, until) + 1)
        self._items, self._durations, self._ends = plan.items, durations, ends
        self._steps, self.next_at = steps, ends[steps - 1]

    def _end_steps(self, now: float) -> list[Completion]:
        steps = self._steps
        times = self._token_times
        if times is not None:
            ends = self._ends[:steps]
            for item in self._items:
                if item.yields_token:
                    times.setdefault(item.request.id, []).extend(ends)
        finished = self.scheduler.advance(steps, sum(self._durations[:steps]), now)
        return [Completion(request, () if times is None else times.pop(request.id)) for request in finished]

    def _share(self, request: Request) -> float:
        return self.cost.share_seconds(
            request.prompt_len, request.params.max_tokens, self.scheduler.max_batch_size
        )
