"""Measures how much of the machine's work is in unfinished requests. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fgengine.cost import CostModel, StepShape
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request

MAX_SHARE = 0.1
"""Maximum share of the work done since the machine was last idle that may be in unfinished requests. This
bounds how much less is finished than under fcfs."""
ENOUGH_SHARE = 0.05
"""Share at which requests may start again."""
TYPICAL_OUTPUT = 256
"""Assumed output tokens of a request until a full batch of requests has finished."""
MAX_STEPS = 256
"""Maximum number of steps predicted at once."""
FAR_ABOVE = 0.5
"""Backlog, as a share of the work done since the machine was last idle, up to which the work in progress is
not limited. A load of 1.5 times the capacity leaves such a backlog. Below it, a policy reaches all its
requests."""
BATCHES = 2
"""Work in progress that is always allowed, in full batches of typical requests; more than fcfs needs."""
MIN_REQUESTS = 32
"""Work in progress that is always allowed, in typical requests; the larger of the two counts."""


class WorkInProgress:
    """The work in progress, in predicted seconds of machine time (``CostModel.share_seconds``).

    If too many requests arrive, a policy that prefers new requests starts all of them: each gets a few tokens
    and none finishes. Above a limit of work in progress, no request should start until more have finished.
    """

    def __init__(self, cost: CostModel | None, max_batch_size: int) -> None:
        """Without a cost model there is no limit."""
        self._cost = cost
        self._batch = max_batch_size
        self._done = 0.0
        """Work since the machine was last idle."""
        self._open = 0.0
        """The part of it that was spent on unfinished requests."""
        self._seen_work, self._seen = 0.0, 0
        """Total work and number of the finished requests; at first, of the started ones with assumed
        lengths."""
        self._finished = 0
        self._spent: dict[str, float] = {}
        """For a cost model with a maximum: the work that each unfinished request adds to ``_open``, by id.

        There the work of a prompt depends on the pieces in which it was computed, so it is added up."""

    def is_too_much(self, num_unfinished: int) -> bool:
        """Whether no request should start now.

        Args:
            num_unfinished: requests in the system, started or not.
        """
        far_above_capacity = num_unfinished * self._mean() > FAR_ABOVE * self._done
        return far_above_capacity and self._open > self._limit(MAX_SHARE)

    @property
    def is_moderate(self) -> bool:
        """Whether the work in progress is low enough for requests to start again."""
        return self._open <= self._limit(ENOUGH_SHARE)

    def computed(self, plan: StepPlan, steps: int) -> None:
        """Count the work of a plan executed ``steps`` times; more than once only if all items decode."""
        if self._cost is None:
            return
        if self._cost.is_linear:
            work = steps * self._work_of(plan.items) + self._growth(plan.items, steps)
            self._done += work
            self._open += work
            return
        for item in plan.items:
            if item.request.finish_reason is None:
                work = steps * self._work_of([item]) + self._growth([item], steps)
                self._done += work
                self._open += work
                self._spent[item.request.id] = self._spent.get(item.request.id, 0.0) + work

    def started(self, request: Request) -> None:
        """Record that the request holds KV now; its assumed length counts until enough have finished."""
        if self._cost is not None and self._finished < self._batch:
            output = min(request.params.max_tokens, TYPICAL_OUTPUT)
            self._seen_work += self._cost.share_seconds(request.prompt_len, output, self._batch)
            self._seen += 1

    def ended(self, request: Request) -> None:
        """Record that the request's work is no longer in progress: it ended, or its KV was discarded."""
        if self._cost is None or request.num_computed == 0:
            return
        work = self._cost.share_seconds(request.prompt_len, max(1, request.num_generated), self._batch)
        spent = work if self._cost.is_linear else self._spent.pop(request.id, 0.0)
        self._open = max(0.0, self._open - spent)
        if request.finish_reason in ("length", "stop"):
            self._finished += 1
            if self._finished == self._batch:  # enough finished requests to drop the assumed lengths
                self._seen_work, self._seen = 0.0, 0
            self._seen_work += work
            self._seen += 1

    def idle(self) -> None:
        """Record that no unfinished request is left."""
        self._done = self._open = 0.0
        self._spent.clear()

    def steps_until_too_much(self, items: Sequence[PlanItem]) -> int:
        """Return after how many executions of these decodes the work may be too much; at least 1."""
        if self._cost is None:
            return 2**31
        within_share = (MAX_SHARE * self._done - self._open) / (1.0 - MAX_SHARE)
        left = max(within_share, self._floor() - self._open)
        largest_step = self._work_of(items) + self._cost.decode_context * len(items) * MAX_STEPS
        return max(1, min(MAX_STEPS, int(left / largest_step)))

    def _limit(self, share: float) -> float:
        return max(share * self._done, self._floor())

    def _floor(self) -> float:
        return max(BATCHES * self._batch, MIN_REQUESTS) * self._mean()

    def _mean(self) -> float:
        return self._seen_work / max(1, self._seen)

    def _work_of(self, items: Sequence[PlanItem]) -> float:
        assert self._cost is not None
        shape = StepShape.of((item.start, item.num_tokens) for item in items)
        idle_places = 1.0 - len(items) / self._batch
        work = self._cost.step_seconds(shape) - self._cost.step * idle_places
        if self._cost.is_linear:
            return work
        work -= self._cost.matmul_seconds(shape.new_tokens)
        return work + sum(self._cost.matmul_share(item.num_tokens, self._batch) for item in items)

    def _growth(self, items: Sequence[PlanItem], steps: int) -> float:
        """Return the additional seconds of ``steps`` decode steps because their contexts grow."""
        assert self._cost is not None
        return self._cost.decode_context * len(items) * steps * (steps - 1) / 2
