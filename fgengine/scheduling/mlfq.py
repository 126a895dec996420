"""Multi-level feedback queues: FastServe's scheduler (NSDI'26, section 4) and the plain one it improves on.

Queue k (from 0) has the quantum q1 * 2^k, q1 being the shortest iteration. A job that has used its
quantum goes to the back of a lower queue; inside a queue jobs run in order of arrival there. A quantum is
charged with the job's own work (``MLFQ.charge``), not with the prompts that ran in the same step.

A job that has waited for the promotion limit (the paper's alpha) since it last ran goes back to the first
queue with a fresh quantum. The limit is ``starvation_limit`` seconds, and more in a long overload, where it
grows with the backlog (``MLFQ.promotion_limit``). Where the job's KV was thrown away, or its prompt is half
computed, it gets the quantum of the queue that holds its next iteration and is not demoted before its next
token: else it would be cut off, thrown away and computed again at every turn.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import accumulate

from fgengine.cost import CostModel, StepShape
from fgengine.request import Request
from fgengine.scheduling.policy import Level, Policy, PolicyContext, Priority
from fgengine.scheduling.steady import seconds_of_steps

QUANTUM_RATIO = 2.0
MAX_LEVELS = 24
"""q1 * 2^23 is a day at a q1 of 10 ms: deeper queues could not be told apart."""
BACKLOGS = 1.0
"""How often the machine could serve everything unfinished before a job that waits is promoted."""
REMEMBERED_JOBS = 1000
"""The mean work of a finished job is over about so many of the last ones."""
SPENT = 1.0 - 1e-9
"""The share of its quantum at which a job has used it: sums of seconds are only nearly equal to quanta."""


@dataclass(slots=True)
class _Job:
    request: Request
    level: int
    serial: int
    """When it joined its queue, counted within the queue: FIFO inside the queue."""
    allowance: int
    """The queue whose quantum it has: its own, or after promotion a lower one's."""
    used: float
    """Seconds of its quantum."""
    waiting_since: float
    computed: int = 0
    known: int = 0
    """The request's computed and known tokens when it was last charged."""
    tokens_due: int = 0
    """Generated tokens that it keeps its turn for, promoted in the middle of computing its known ones."""


class MLFQ(Policy):
    """Every job starts in the first queue."""

    summary = "feedback queues; all start in the first"
    paper = "CTSS, AFIPS'62"
    needs_cost = True

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        if context.cost is None:
            raise ValueError("a multi-level feedback queue takes its first quantum from a cost model")
        self.cost: CostModel = context.cost
        self.quanta = [self.cost.min_iteration_seconds * QUANTUM_RATIO**k for k in range(MAX_LEVELS)]
        self._before = [0.0, *accumulate(self.quanta)]
        """Sum of the quanta above queue k."""
        # Linked lists, not dicts: jobs leave at the front, and a dict would step over the gaps they leave.
        self._levels: list[OrderedDict[str, _Job]] = [OrderedDict() for _ in self.quanta]
        self._joined = [0] * MAX_LEVELS
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        """By ``waiting_since``, the longest wait first: it only ever grows at the end."""
        batch = [(1, 1)] * context.max_batch_size
        self.decode_seconds = self.cost.step_seconds(StepShape.of(batch))
        """What a decode is charged: a step of a full batch, each decoding its first token. Its own context is
        left out: it costs little, and with it long answers would sink further behind."""
        self._num_finished = 0
        self._mean_share = 0.0
        """Predicted machine seconds of a job that has finished."""

    def entry_level(self, request: Request) -> int:
        return 0

    def level_that_fits(self, seconds: float) -> int:
        """The highest queue whose quantum holds an iteration of ``seconds``; the last one where none does."""
        for level, quantum in enumerate(self.quanta):
            if seconds <= quantum:
                return level
        return len(self.quanta) - 1

    def add(self, request: Request, now: float) -> None:
        job = _Job(request, level=0, serial=0, allowance=0, used=0.0, waiting_since=now)
        job.known = request.num_known
        self._jobs[request.id] = job
        self._join(job, self.entry_level(request))

    def remove(self, request: Request) -> None:
        job = self._jobs.pop(request.id)
        del self._levels[job.level][request.id]
        if request.finish_reason in ("length", "stop"):
            share = self.cost.share_seconds(
                request.prompt_len, request.num_generated, self.context.max_batch_size
            )
            self._num_finished += 1
            self._mean_share += (share - self._mean_share) / min(self._num_finished, REMEMBERED_JOBS)

    def order(self, now: float) -> Iterator[Request]:
        self._promote_starved(now)
        for level in self._levels:
            for job in level.values():
                yield job.request

    def priority(self, request: Request) -> Priority:
        job = self._jobs[request.id]
        return (job.level, job.serial)

    def on_start(self, request: Request) -> None:
        self._jobs[request.id].computed = 0  # else known tokens computed again would look like a decode

    def on_step(self, request: Request, seconds: float, now: float) -> None:
        job = self._jobs[request.id]
        job.used += self.charge(job, seconds)
        job.computed, job.known = request.num_computed, len(request.tokens)
        job.waiting_since = now
        self._jobs.move_to_end(request.id)
        if job.used >= self.quanta[job.allowance] * SPENT and request.num_generated >= job.tokens_due:
            self._join(job, max(job.allowance + 1, self._level_for_next(request)))

    def charge(self, job: _Job, seconds: float) -> float:
        """Seconds that the job's quantum is charged for the steps just reported, which took ``seconds``.

        Its own work, by the cost model: for a prefill its time alone on the machine, for a decode one step of
        a full batch of decodes. The prompts of others that ran in the same step are not its doing.
        """
        tokens = job.request.num_computed - job.computed
        if tokens <= 1:
            return self.decode_seconds
        steps = len(job.request.tokens) - job.known
        if tokens > steps:
            return self.cost.iteration_seconds(job.computed, tokens)
        return steps * self.decode_seconds  # reported as one

    @property
    def promotion_limit(self) -> float:
        """Seconds that a job waits before it is promoted.

        ``starvation_limit``, or if that is longer ``BACKLOGS`` times what the machine needs to serve
        everything unfinished once: the number of unfinished jobs times the mean work of the finished ones.
        In a long overload all wait longer than any fixed limit; all would be promoted, and the queues would
        decay to round robin.
        """
        backlog = len(self._jobs) * self._mean_share
        return max(self.context.starvation_limit, BACKLOGS * backlog)

    def expected_wait(self, request: Request, now: float) -> float:
        """min(T_promote, T_execute) of section 5.

        T_execute: every job in a queue above may use that queue's quantum and those on its way down to this
        one; every job ahead in this queue, of which there are at most as many as have joined it since the
        first, its quantum; a batch uses them side by side.
        """
        job = self._jobs[request.id]
        level = self._levels[job.level]
        quantum, before = self.quanta[job.level], self._before
        first = next(iter(level.values()))
        ahead = min(len(level) - 1, job.serial - first.serial)
        seconds = ahead * quantum
        for k in range(job.level):
            seconds += len(self._levels[k]) * (before[job.level] - before[k])
        execute = seconds / self.context.max_batch_size
        promote = self.promotion_limit - (now - job.waiting_since)
        return min(execute, promote) if job.level > 0 else execute

    def steady_seconds(self, running: Collection[Request], now: float) -> float:
        """Until one of the batch has used its quantum, or another one may have waited long enough."""
        left = math.inf
        for request in running:
            job = self._jobs[request.id]
            left = min(left, self.quanta[job.allowance] * SPENT - job.used)
        longest = next(iter(self._jobs.values()))
        promotion = (longest.waiting_since + self.promotion_limit - now) * SPENT
        return max(0.0, min(self.seconds_to_charge(left, running), promotion))

    def seconds_to_charge(self, charge: float, running: Collection[Request]) -> float:
        """Seconds for which decodes of this batch may go on until each of them is charged ``charge`` seconds,
        the step in which it is included."""
        return seconds_of_steps(self.cost, running, math.ceil(charge / self.decode_seconds - 1e-9))

    def levels(self) -> list[Level]:
        return [
            Level(f"Q{k + 1}", len(jobs), quantum)
            for k, (jobs, quantum) in enumerate(zip(self._levels, self.quanta, strict=True))
        ]

    def level_of(self, request: Request) -> int:
        return self._jobs[request.id].level

    def _level_for_next(self, request: Request) -> int:
        """Where its next iteration fits, else it would be cut off there again (section 4.1)."""
        return self.level_that_fits(self.cost.iteration_seconds(request.num_computed, request.num_pending))

    def _promote_starved(self, now: float) -> None:
        """Those who have waited longest first, in one step no more than could run in it: where many have
        waited long enough at the same time, the others follow in the next steps."""
        limit = self.promotion_limit
        for _ in range(self.context.max_batch_size):
            job = next(iter(self._jobs.values()), None)
            if job is None or now - job.waiting_since < limit:
                return
            job.waiting_since = now
            self._jobs.move_to_end(job.request.id)
            if job.level > 0:
                midway = self._is_midway(job.request)
                self._join(job, 0)
                if midway:
                    job.tokens_due = job.request.num_generated + 1
                    job.allowance = self._level_for_next(job.request)

    @staticmethod
    def _is_midway(request: Request) -> bool:
        """Whether more than its newest token has to be computed, and some of it had been before."""
        return request.num_pending > 1 and (request.num_generated > 0 or request.num_computed > 0)

    def _join(self, job: _Job, level: int) -> None:
        """To the back of queue ``level``, with a fresh quantum."""
        self._levels[job.level].pop(job.request.id, None)
        job.level = job.allowance = min(level, MAX_LEVELS - 1)
        self._joined[job.level] += 1
        job.serial = self._joined[job.level]
        job.used = 0.0
        self._levels[job.level][job.request.id] = job


class SkipJoinMLFQ(MLFQ):
    """A job joins the highest queue whose quantum holds its first-token time (section 4.1).

    The first-token time is what the cost model says of its prompt, so a long prompt neither blocks the
    first queue nor is cut off in every queue on its way down.
    """

    summary = "feedback queues; joins where its prompt fits"
    paper = "FastServe, NSDI'26"

    def entry_level(self, request: Request) -> int:
        return self.level_that_fits(self.cost.prefill_seconds(request.prompt_len))


class ArtifactMLFQ(SkipJoinMLFQ):
    """As FastServe's published code does it: every job of a batch is charged the whole step, the prompts of
    others included, and the promotion limit is ``starvation_limit`` however long the backlog."""

    summary = "sj-mlfq as in FastServe's published code: charged whole steps, promoted after a fixed time"

    def charge(self, job: _Job, seconds: float) -> float:
        return seconds

    @property
    def promotion_limit(self) -> float:
        return self.context.starvation_limit

    def seconds_to_charge(self, charge: float, running: Collection[Request]) -> float:
        return charge * SPENT
