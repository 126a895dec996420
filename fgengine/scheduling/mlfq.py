"""Multi-level feedback queues: the plain policy, and FastServe's skip-join version (NSDI'26, section 4).

Queue k (from 0) has the quantum q1 * 2^k; q1 is the time of the shortest iteration. A job is demoted to the
back of a lower queue once it has used its quantum. Inside a queue, jobs run in the order in which they joined
it. A job is charged only for its own work (``MLFQ.charge``), not for the prompts of others in the same step.

A job is promoted to the first queue, with a fresh quantum, once it has waited for the promotion limit since
it last ran (the paper's alpha). The limit is ``starvation_limit`` seconds. In a long overload it grows with
the backlog (``MLFQ.promotion_limit``).

If a promoted job's KV was discarded, or its prompt is partly computed, its next iteration is long. Such a job
gets the quantum of the queue that holds this iteration, and it is not demoted before its next token.
Otherwise it would be preempted, discarded and recomputed again and again without making progress.
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
"""Number of queues. With a q1 of 10 ms the last quantum is already a day, so more queues would be useless."""
BACKLOGS = 1.0
"""Promotion limit in a long overload, in units of the time needed to serve all unfinished jobs once."""
REMEMBERED_JOBS = 1000
"""Recently finished jobs over which their mean work is averaged, approximately."""
SPENT = 1.0 - 1e-9
"""Share of a quantum that counts as all of it, because sums of floats are inexact."""


@dataclass(slots=True)
class _Job:
    request: Request
    level: int
    serial: int
    """Running number of the job within its queue; gives FIFO order there."""
    allowance: int
    """Index of the queue whose quantum it has: its own queue, or a lower one after some promotions."""
    used: float
    """Seconds of the quantum that are used."""
    waiting_since: float
    """When it last ran, was promoted or arrived, seconds."""
    computed: int = 0
    """The request's computed tokens when it was last charged."""
    known: int = 0
    """The request's known tokens when it was last charged."""
    tokens_due: int = 0
    """Generated tokens before which the job is not demoted; set if it is promoted midway."""


class MLFQ(Policy):
    """Multi-level feedback queues without skip-join: every job starts in the first queue.

    Source: CTSS (AFIPS'62); the baseline MLFQ of FastServe (NSDI'26). Needs a cost model.

        Engine.from_config(EngineConfig(policy="mlfq", starvation_limit=10.0))

    Raises ValueError if the context has no cost model.
    """

    summary = "feedback queues; all start in the first"
    paper = "CTSS, AFIPS'62"
    needs_cost = True

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        if context.cost is None:
            raise ValueError("a multi-level feedback queue needs a cost model for its quanta: give --profile")
        self.cost: CostModel = context.cost
        self.quanta = [self.cost.min_iteration_seconds * QUANTUM_RATIO**k for k in range(MAX_LEVELS)]
        self._before = [0.0, *accumulate(self.quanta)]
        """Element k: sum of the quanta of the queues above queue k, seconds."""
        # OrderedDict, not dict: jobs leave at the front, and iterating a dict scans the deleted entries.
        self._levels: list[OrderedDict[str, _Job]] = [OrderedDict() for _ in self.quanta]
        self._joined = [0] * MAX_LEVELS
        """For each queue, the number of times a job has joined it."""
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        """All jobs in order of ``waiting_since``, the longest wait first."""
        batch = [(1, 1)] * context.max_batch_size
        self.decode_seconds = self.cost.step_seconds(StepShape.of(batch))
        """Seconds charged for a decode: a step of a full batch in which each request decodes its first token.

        The request's own context is not charged. It costs little, and it would demote long answers further.
        """
        self._num_finished = 0
        self._mean_share = 0.0
        """Mean predicted machine time of the finished jobs, seconds."""

    def entry_level(self, request: Request) -> int:
        """Return the index of the queue that a new request joins."""
        return 0

    def level_that_fits(self, seconds: float) -> int:
        """Return the index of the first queue whose quantum is at least ``seconds``, or the last index."""
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
        """Promote starved jobs, then yield the requests queue by queue, each queue in FIFO order."""
        self._promote_starved(now)
        for level in self._levels:
            for job in level.values():
                yield job.request

    def priority(self, request: Request) -> Priority:
        """Return (queue, running number within the queue)."""
        job = self._jobs[request.id]
        return (job.level, job.serial)

    def on_start(self, request: Request) -> None:
        self._jobs[request.id].computed = 0  # otherwise recomputed tokens would be charged as a decode

    def on_step(self, request: Request, seconds: float, now: float) -> None:
        """Charge the job's quantum, and demote the job if the quantum is used up."""
        job = self._jobs[request.id]
        job.used += self.charge(job, seconds)
        job.computed, job.known = request.num_computed, len(request.tokens)
        job.waiting_since = now
        self._jobs.move_to_end(request.id)
        if job.used >= self.quanta[job.allowance] * SPENT and request.num_generated >= job.tokens_due:
            self._join(job, max(job.allowance + 1, self._level_for_next(request)))

    def charge(self, job: _Job, seconds: float) -> float:
        """Return the seconds to charge to the job's quantum for the steps just reported.

        A prefill is charged its predicted time alone on the machine. A decode is charged one step of a full
        batch of decodes. Prompts of other requests in the same step are not charged.

        Args:
            seconds: measured time of these steps.
        """
        tokens = job.request.num_computed - job.computed
        if tokens <= 1:
            return self.decode_seconds
        steps = len(job.request.tokens) - job.known
        if tokens > steps:
            return self.cost.iteration_seconds(job.computed, tokens)
        return steps * self.decode_seconds  # several decodes in one report

    @property
    def promotion_limit(self) -> float:
        """Seconds that a job waits before it is promoted.

        This is the larger of ``starvation_limit`` and ``BACKLOGS`` times the predicted time to serve all
        unfinished jobs once (their number times the mean work of the finished jobs). With a fixed limit, a
        long overload would promote every job, and the queues would degrade to round robin.
        """
        backlog = len(self._jobs) * self._mean_share
        return max(self.context.starvation_limit, BACKLOGS * backlog)

    def expected_wait(self, request: Request, now: float) -> float:
        """Return the ENST in seconds: min(T_promote, T_execute) of FastServe, section 5.

        T_promote is the time until the job is promoted. T_execute is an upper bound of the time until its
        turn: each job in a higher queue may use the quanta of all queues down to this one, each earlier job
        in this queue may use its quantum, and a full batch of jobs runs at the same time.
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
        """Return the seconds until a running job uses up its quantum or a waiting job may be promoted."""
        left = math.inf
        for request in running:
            job = self._jobs[request.id]
            left = min(left, self.quanta[job.allowance] * SPENT - job.used)
        longest = next(iter(self._jobs.values()))
        promotion = (longest.waiting_since + self.promotion_limit - now) * SPENT
        return max(0.0, min(self.seconds_to_charge(left, running), promotion))

    def seconds_to_charge(self, charge: float, running: Collection[Request]) -> float:
        """Return how long the batch can decode until each job is charged ``charge`` seconds.

        The step in which the charge is reached is included.
        """
        return seconds_of_steps(self.cost, running, math.ceil(charge / self.decode_seconds - 1e-9))

    def levels(self) -> list[Level]:
        """Return the queues, named Q1, Q2, ..., with their numbers of jobs and their quanta."""
        return [
            Level(f"Q{k + 1}", len(jobs), quantum)
            for k, (jobs, quantum) in enumerate(zip(self._levels, self.quanta, strict=True))
        ]

    def level_of(self, request: Request) -> int:
        """Return the index of the queue the request is in; 0 is the first."""
        return self._jobs[request.id].level

    def _level_for_next(self, request: Request) -> int:
        """Return the first queue whose quantum holds the complete next iteration (section 4.1)."""
        return self.level_that_fits(self.cost.iteration_seconds(request.num_computed, request.num_pending))

    def _promote_starved(self, now: float) -> None:
        """Promote the jobs that have waited for the promotion limit, longest wait first.

        One step promotes at most a full batch of jobs; the others follow in the next steps.
        """
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
        """Whether the request's prompt is partly computed, or its discarded KV must be recomputed."""
        return request.num_pending > 1 and (request.num_generated > 0 or request.num_computed > 0)

    def _join(self, job: _Job, level: int) -> None:
        """Move the job to the back of queue ``level``, with a fresh quantum."""
        self._levels[job.level].pop(job.request.id, None)
        job.level = job.allowance = min(level, MAX_LEVELS - 1)
        self._joined[job.level] += 1
        job.serial = self._joined[job.level]
        job.used = 0.0
        self._levels[job.level][job.request.id] = job


class SkipJoinMLFQ(MLFQ):
    """Skip-join MLFQ: a job joins the highest queue whose quantum holds its first-token time.

    The first-token time is the predicted prefill time of its prompt. A long prompt therefore neither blocks
    the first queue nor is preempted in every queue on its way down. Needs a cost model. Source: FastServe
    (NSDI'26), section 4.1.

        Engine.from_config(EngineConfig(policy="sj-mlfq"))     # the default policy
    """

    summary = "feedback queues; joins where its prompt fits"
    paper = "FastServe, NSDI'26"

    def entry_level(self, request: Request) -> int:
        """Return the first queue whose quantum holds the predicted prefill time."""
        return self.level_that_fits(self.cost.prefill_seconds(request.prompt_len))


class ArtifactMLFQ(SkipJoinMLFQ):
    """Skip-join MLFQ as in FastServe's published code.

    It differs from ``SkipJoinMLFQ`` in two ways. Each job of a batch is charged the complete step, including
    the prompts of other requests. The promotion limit is always ``starvation_limit``.

        Engine.from_config(EngineConfig(policy="sj-mlfq-artifact"))
    """

    summary = "sj-mlfq as in FastServe's published code: charges complete steps, fixed promotion limit"

    def charge(self, job: _Job, seconds: float) -> float:
        """Return the complete time of the steps."""
        return seconds

    @property
    def promotion_limit(self) -> float:
        """Seconds that a job waits before it is promoted: always ``starvation_limit``."""
        return self.context.starvation_limit

    def seconds_to_charge(self, charge: float, running: Collection[Request]) -> float:
        return charge * SPENT
