"""Multi-level feedback queues: FastServe's scheduler (NSDI'26, section 4) and the plain one it improves on.

Queue k (from 0) has the quantum q1 * 2^k, q1 being the shortest iteration. A job that has used its
quantum goes to the back of a lower queue; inside a queue jobs run in order of arrival there. A job that
has waited ``starvation_limit`` seconds (the paper's alpha) since it last ran goes back to the first queue
with a fresh quantum; where its KV was thrown away, to the queue that holds its recomputation, since in the
first one it would be cut off after a token and recomputed again at its next turn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from fgengine.cost import CostModel
from fgengine.request import Request
from fgengine.scheduling.policy import Policy, PolicyContext, Priority

QUANTUM_RATIO = 2.0
MAX_LEVELS = 24
"""q1 * 2^23 is a day at a q1 of 10 ms: deeper queues could not be told apart."""


@dataclass(slots=True)
class _Job:
    request: Request
    level: int
    serial: int
    """When it joined its queue, as a running number: FIFO inside the queue."""
    used: float
    """Seconds of its quantum."""
    waiting_since: float


class MLFQ(Policy):
    """Every job starts in the first queue."""

    summary = "multi-level feedback queue; every job starts in the first queue"
    needs_cost = True

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        if context.cost is None:
            raise ValueError("a multi-level feedback queue takes its first quantum from a cost model")
        self.cost: CostModel = context.cost
        self.quanta = [self.cost.min_iteration_seconds * QUANTUM_RATIO**k for k in range(MAX_LEVELS)]
        self._levels: list[dict[str, _Job]] = [{} for _ in self.quanta]
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        """By ``waiting_since``, the longest wait first: it only ever grows at the end."""
        self._serial = 0

    def entry_level(self, request: Request) -> int:
        return 0

    def level_that_fits(self, seconds: float) -> int:
        """The highest queue whose quantum holds an iteration of ``seconds``; the last one where none does."""
        for level, quantum in enumerate(self.quanta):
            if seconds <= quantum:
                return level
        return len(self.quanta) - 1

    def add(self, request: Request, now: float) -> None:
        job = _Job(request, level=0, serial=0, used=0.0, waiting_since=now)
        self._jobs[request.id] = job
        self._join(job, self.entry_level(request))

    def remove(self, request: Request) -> None:
        job = self._jobs.pop(request.id)
        del self._levels[job.level][request.id]

    def order(self, now: float) -> Iterator[Request]:
        self._promote_starved(now)
        for level in self._levels:
            for job in level.values():
                yield job.request

    def priority(self, request: Request) -> Priority:
        job = self._jobs[request.id]
        return (job.level, job.serial)

    def on_step(self, request: Request, seconds: float, now: float) -> None:
        job = self._jobs[request.id]
        job.used += seconds
        self._stamp(job, now)
        if job.used >= self.quanta[job.level]:
            self._join(job, max(job.level + 1, self._level_for_next(request)))

    def level_of(self, request: Request) -> int:
        return self._jobs[request.id].level

    def _level_for_next(self, request: Request) -> int:
        """Where its next iteration fits, else it would be cut off there again (section 4.1)."""
        return self.level_that_fits(self.cost.iteration_seconds(request.num_computed, request.num_pending))

    def _promote_starved(self, now: float) -> None:
        while self._jobs:
            job = next(iter(self._jobs.values()))
            if now - job.waiting_since < self.context.starvation_limit:
                return
            self._stamp(job, now)
            thrown_away = job.request.num_generated > 0 and job.request.num_pending > 1
            level = self._level_for_next(job.request) if thrown_away else 0
            if job.level > level:
                self._join(job, level)

    def _join(self, job: _Job, level: int) -> None:
        """To the back of queue ``level``, with a fresh quantum."""
        self._levels[job.level].pop(job.request.id, None)
        self._serial += 1
        job.level = min(level, len(self._levels) - 1)
        job.serial = self._serial
        job.used = 0.0
        self._levels[job.level][job.request.id] = job

    def _stamp(self, job: _Job, now: float) -> None:
        job.waiting_since = now
        self._jobs.move_to_end(job.request.id)


class SkipJoinMLFQ(MLFQ):
    """A job joins the highest queue whose quantum holds its first-token time (section 4.1).

    The first-token time is what the cost model says of its prompt, so a long prompt neither blocks the
    first queue nor is cut off in every queue on its way down.
    """

    summary = "FastServe's skip-join multi-level feedback queue (NSDI'26)"

    def entry_level(self, request: Request) -> int:
        return self.level_that_fits(self.cost.prefill_seconds(request.prompt_len))
