"""How much of the machine's work is in requests that have not ended. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from fgengine.cost import CostModel, StepShape
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request

MAX_SHARE = 0.1
"""Of the work done since the machine was last idle, the share that may be in unfinished requests. By so much
less has been finished than under fcfs."""
ENOUGH_SHARE = 0.05
"""The share at which requests may start again."""
TYPICAL_OUTPUT = 256
"""Tokens, where as many requests as a batch holds have not finished yet."""
MAX_STEPS = 256
"""Looked ahead at once."""
FAR_ABOVE = 0.5
"""Below such a backlog, as a share of the work done since the machine was last idle (a load of 1.5 times the
capacity leaves one), a policy may start what it likes: it will get round to all of them."""
BATCHES = 2
"""Always allowed: the whole work of so many full batches, more than fcfs has in progress,"""
MIN_REQUESTS = 32
"""and of so many requests."""


class WorkInProgress:
    """Work in predicted seconds of the machine, as ``CostModel.share_seconds`` counts it.

    A policy that prefers new requests starts them all when too many arrive: all of them get a few tokens, and
    none its last. So beyond some work in progress nothing new should start until more has been finished.
    """

    def __init__(self, cost: CostModel | None, max_batch_size: int) -> None:
        """Without a cost model nothing is bounded."""
        self._cost = cost
        self._batch = max_batch_size
        self._done = 0.0
        """Work since the machine was last idle."""
        self._open = 0.0
        """What of it went into requests that have not ended."""
        self._seen_work, self._seen = 0.0, 0
        """Of the requests that have finished; before, what the started ones are expected to be."""
        self._finished = 0

    def is_too_much(self, num_unfinished: int) -> bool:
        """``num_unfinished``: requests in the system, started or not."""
        far_above_capacity = num_unfinished * self._mean() > FAR_ABOVE * self._done
        return far_above_capacity and self._open > self._limit(MAX_SHARE)

    @property
    def is_moderate(self) -> bool:
        return self._open <= self._limit(ENOUGH_SHARE)

    def computed(self, plan: StepPlan, steps: int) -> None:
        """The plan was executed; more than once only where it is of decodes."""
        if self._cost is not None:
            work = steps * self._work_of(plan.items) + self._growth(plan, steps)
            self._done += work
            self._open += work

    def started(self, request: Request) -> None:
        if self._cost is not None and self._finished < self._batch:
            output = min(request.params.max_tokens, TYPICAL_OUTPUT)
            self._seen_work += self._cost.share_seconds(request.prompt_len, output, self._batch)
            self._seen += 1

    def ended(self, request: Request) -> None:
        """Its work is no longer in progress, whatever came of it."""
        if self._cost is None or request.num_computed == 0:
            return
        work = self._cost.share_seconds(request.prompt_len, max(1, request.num_generated), self._batch)
        self._open = max(0.0, self._open - work)
        if request.finish_reason in ("length", "stop"):
            self._finished += 1
            if self._finished == self._batch:  # enough to forget what was expected
                self._seen_work, self._seen = 0.0, 0
            self._seen_work += work
            self._seen += 1

    def idle(self) -> None:
        """No request is left."""
        self._done = self._open = 0.0

    def steps_until_too_much(self, items: Sequence[PlanItem]) -> int:
        """Executions of these decodes after which it may be too much; at least 1."""
        if self._cost is None:
            return 2**31
        within_share = (MAX_SHARE * self._done - self._open) / (1.0 - MAX_SHARE)
        left = max(within_share, self._floor() - self._open)
        most = self._work_of(items) + self._cost.decode_context * len(items) * MAX_STEPS
        return max(1, min(MAX_STEPS, int(left / most)))

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
        return self._cost.step_seconds(shape) - self._cost.step * idle_places

    def _growth(self, plan: StepPlan, steps: int) -> float:
        """What decodes of growing contexts take beyond ``steps`` times the first."""
        assert self._cost is not None
        return self._cost.decode_context * len(plan.items) * steps * (steps - 1) / 2
