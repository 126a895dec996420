"""One copy of the engine on a virtual clock. Pure.

It decides with the engine's own scheduler, policy and KV manager. Steps between which nothing can change
are taken at once: the scheduler says for how many steps its last plan holds (``Scheduler.plan_lifetime``),
and the cost model how long each of them takes.
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
from fgengine.scheduling.refusal import RequestRefused
from fgengine.scheduling.scheduler import Scheduler
from fgengine.simulation.copying import SimulatedCopyEngine


class Completion(NamedTuple):
    """A request that is over. Its ``phase_since`` says when."""

    request: Request
    token_times: Sequence[float]
    """When each of its tokens came, seconds; empty where times are not kept."""
    refusal: RequestRefused | None = None
    """Why it was not served, in words and by its class; it then has no tokens."""


class Replica:
    """Between two calls it is at the beginning of some steps that end at ``next_at`` unless cut short."""

    def __init__(self, scheduler: Scheduler, cost: CostModel, *, keep_token_times: bool = False) -> None:
        self.scheduler = scheduler
        self.cost = cost
        self.clock = VirtualClock()
        self.copies = SimulatedCopyEngine(
            self.clock, scheduler.limits.block_bytes, cost.copy_bytes_per_second
        )
        self.next_at = math.inf
        """When it has something to do, seconds; infinite: not before the next request."""
        self.copy_wait_seconds = 0.0
        """In which nothing ran, because every request waited for a copy; as in ``Work``."""
        self.outstanding_seconds = 0.0
        """Predicted seconds of machine time of the requests it was given and has not finished."""
        self._inbox: list[Request] = []
        """Arrived in the middle of a step; taken in at its end."""
        self._items: Sequence[PlanItem] = ()
        self._durations: list[float] = []
        self._ends: list[float] = []
        """Of each of the steps: how long it takes, when it ends."""
        self._steps = 0
        self._token_times: dict[str, list[float]] | None = {} if keep_token_times else None

    @property
    def num_unfinished(self) -> int:
        return len(self.scheduler.requests) + len(self._inbox)

    def receive(self, request: Request) -> None:
        """The request arrives, at its ``arrival``, which is not after ``next_at``.

        A running step is not interrupted: the steps end with the one that runs then.
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
        """Go to ``next_at`` and plan from there. What ended on the way.

        Raises RuntimeError when there is work but nothing can ever happen.
        """
        now = self.next_at
        self.clock.advance_to(now)
        endings = self._end_steps(now) if self._steps else []
        endings += [refused for request in self._inbox if (refused := self._take_in(request, now))]
        self._inbox.clear()
        for request in self.scheduler.expire(now):
            endings.append(Completion(request, (), self.scheduler.queue.timeout_error(now)))
        self.scheduler.copied(self.copies.done())
        for ending in endings:
            self.outstanding_seconds -= self._share(ending.request)
        self._plan(now)
        return endings

    def _take_in(self, request: Request, now: float) -> Completion | None:
        try:
            self.scheduler.add(request, now)
        except RequestRefused as refusal:
            request.finish("error", now)
            return Completion(request, (), refusal)
        return None

    def _plan(self, now: float) -> None:
        self._steps, self.next_at = 0, math.inf
        if not self.scheduler.has_work and not self.scheduler.kv.transfers_in_flight:
            self.outstanding_seconds = 0.0  # whatever sums and differences have left of it
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
        """As many steps as the plan is good for, up to the first one that ends after a copy has.

        Seconds are added up as the clock of an engine that takes every step would add them.
        """
        lifetime = self.scheduler.plan_lifetime(now)
        shape = StepShape.of_plan(plan)
        first = self.cost.step_seconds(shape)
        durations, until = [first], min(lifetime.until, self.copies.next_end, self.scheduler.queue.deadline)
        if lifetime.steps > 1 and now + first < until:
            # Steps only get longer, so no more than this many begin before ``until``.
            most = min(lifetime.steps, int((until - now) / first) + 2) if until < math.inf else lifetime.steps
            context, growth = shape.decode_context, shape.decode_requests
            per_token = self.cost.decode_context
            constant = self.cost.step_seconds(replace(shape, decode_context=0))
            durations += [constant + per_token * (context + growth * i) for i in range(1, most)]
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
