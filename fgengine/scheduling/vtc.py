"""The policy virtual token counter: fairness among users (Sheng et al., Fairness in Serving LLMs, OSDI'24).

Each user has a counter of the service received, in weighted tokens. A prompt token costs ``PROMPT_WEIGHT``
and is charged when the request starts; a generated token costs ``OUTPUT_WEIGHT``. A free place in the batch
goes to the earliest request of the waiting user with the smallest counter (the paper's algorithm 2).

When a user without waiting requests sends one, its counter is raised to the smallest counter of the waiting
users. A user can therefore not save up service while idle. If two users always have waiting requests, the
difference of their service is bounded by a constant, no matter how many requests they send.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from typing import Any

from sortedcontainers import SortedDict

from fgengine.request import Request
from fgengine.scheduling.policy import Policy, PolicyContext, Priority

PROMPT_WEIGHT, OUTPUT_WEIGHT = 1, 2
"""The paper's weights, based on the token prices of commercial services."""
REMEMBERED_USERS = 10_000
"""Maximum number of stored counters of users without requests; the longest inactive user is removed first."""


@dataclass(slots=True, eq=False)
class _User:
    name: str
    rank: int
    """Unique number that decides between equal counters."""
    counter: int
    """Weighted tokens charged."""
    waiting: OrderedDict[str, _Job] = field(default_factory=OrderedDict)
    """Waiting requests by id, in order of arrival. Not a dict: entries leave at the front, and iterating a
    dict scans deleted entries."""
    num_requests: int = 0
    """Unfinished requests, waiting or started."""


@dataclass(slots=True, eq=False)
class _Job:
    request: Request
    user: _User
    prompts_before: int
    """Weighted prompt tokens of its user's earlier requests. Only differences between the user's waiting
    requests have a meaning."""
    start: int | None = None
    """Running number in order of start; None: it waits."""
    charged_tokens: int = 0
    """Generated tokens for which its user was charged."""

    @property
    def prompt_cost(self) -> int:
        return PROMPT_WEIGHT * self.request.prompt_len


class VTC(Policy):
    """Fair sharing among users: started requests first, then the waiting requests of the least served user.

    As in the paper, fairness never preempts: a started request is preempted only if device memory runs short.
    ``Request.user`` names the user. Source: VTC (Sheng et al., OSDI'24).

        Engine.from_config(EngineConfig(policy="vtc"))
    """

    summary = "fair among users by tokens served"
    paper = "VTC, OSDI'24"

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self._jobs: dict[str, _Job] = {}
        self._started: dict[str, _Job] = {}
        self._users: dict[str, _User] = {}
        """Users with an unfinished request, by name."""
        self._inactive: OrderedDict[str, int] = OrderedDict()
        """Counters of users without requests, the longest inactive user first."""
        self._waiting: Any = SortedDict()
        """Users with a waiting request, by (counter, rank)."""
        self._last_waiting: _User | None = None
        """The last user that stopped waiting."""
        self._serial = 0

    def add(self, request: Request, now: float) -> None:
        user = self._users.get(request.user) or self._add_user(request.user)
        user.num_requests += 1
        if not user.waiting:
            user.counter = max(user.counter, self._min_counter())
            self._waiting[user.counter, user.rank] = user
        last = next(reversed(user.waiting.values()), None)
        job = _Job(request, user, prompts_before=last.prompts_before + last.prompt_cost if last else 0)
        user.waiting[request.id] = self._jobs[request.id] = job

    def remove(self, request: Request) -> None:
        job = self._jobs.pop(request.id)
        user = job.user
        self._charge_output(job)
        if job.start is None:
            self._leave_queue(job)
        else:
            del self._started[request.id]
        user.num_requests -= 1
        if user.num_requests == 0:
            del self._users[user.name]
            self._inactive[user.name] = user.counter
            if len(self._inactive) > REMEMBERED_USERS:
                self._inactive.popitem(last=False)

    def order(self, now: float) -> Iterator[Request]:
        """Yield the started requests in order of start, then the waiting ones of the least served users."""
        for job in self._started.values():
            yield job.request
        yield from self._merge_waiting()

    def priority(self, request: Request) -> Priority:
        """Return (0, number in order of start), or (1, counter at which the request's turn comes, user)."""
        job = self._jobs[request.id]
        if job.start is not None:
            return (0, job.start)
        first = next(iter(job.user.waiting.values()))
        return (1, job.user.counter + job.prompts_before - first.prompts_before, job.user.rank)

    def on_start(self, request: Request) -> None:
        job = self._jobs[request.id]
        if job.start is None:
            self._start(job)

    def on_step(self, request: Request, seconds: float, now: float) -> None:
        self._charge_output(self._jobs[request.id])

    def steady_seconds(self, running: Collection[Request], now: float) -> float:
        """Return infinity if the batch is full or no request waits, else 0.

        A waiting request may be admitted as soon as it fits, and each generated token may change which
        waiting request is first.
        """
        full = len(running) >= self.context.max_batch_size
        return math.inf if full or not self._waiting else 0.0

    def counter_of(self, user: str) -> int:
        """Return the user's counter in weighted tokens, including raises; 0 if the user is not known."""
        return self._users[user].counter if user in self._users else self._inactive.get(user, 0)

    def _merge_waiting(self) -> Iterator[Request]:
        """Yield the waiting requests by their user's counter plus the prompts of the user's earlier requests.

        This is the order in which they would start if each prompt were charged when its request is yielded.
        A user is considered only when its counter is reached, so the first n requests cost O(n log n).
        """
        users = iter(self._waiting.values())
        upcoming = next(users, None)
        heads: list[tuple[int, int, _Job, Iterator[_Job]]] = []
        while heads or upcoming:
            if upcoming and (not heads or (upcoming.counter, upcoming.rank) < heads[0][:2]):
                jobs = iter(upcoming.waiting.values())
                heappush(heads, (upcoming.counter, upcoming.rank, next(jobs), jobs))
                upcoming = next(users, None)
                continue
            tag, rank, job, jobs = heads[0]
            yield job.request
            following = next(jobs, None)
            if following is None:
                heappop(heads)
            else:
                heapreplace(heads, (tag + job.prompt_cost, rank, following, jobs))

    def _add_user(self, name: str) -> _User:
        self._serial += 1
        user = self._users[name] = _User(name, self._serial, self._inactive.pop(name, 0))
        return user

    def _min_counter(self) -> int:
        """Return the minimum counter of a user that begins to wait.

        It is the smallest counter of the waiting users, or that of the last user that waited.
        """
        if self._waiting:
            counter, _ = self._waiting.peekitem(0)[0]
            return int(counter)
        return self._last_waiting.counter if self._last_waiting else 0

    def _start(self, job: _Job) -> None:
        """Start the job and charge its prompt. Called once for each job, even if its KV is recomputed."""
        self._leave_queue(job)
        self._serial += 1
        job.start = self._serial
        self._started[job.request.id] = job
        self._charge(job.user, job.prompt_cost)

    def _leave_queue(self, job: _Job) -> None:
        user = job.user
        if next(iter(user.waiting.values())) is not job:
            for later in reversed(user.waiting.values()):
                if later is job:
                    break
                later.prompts_before -= job.prompt_cost
        del user.waiting[job.request.id]
        if not user.waiting:
            del self._waiting[user.counter, user.rank]
            self._last_waiting = user

    def _charge_output(self, job: _Job) -> None:
        self._charge(job.user, OUTPUT_WEIGHT * (job.request.num_generated - job.charged_tokens))
        job.charged_tokens = job.request.num_generated

    def _charge(self, user: _User, cost: int) -> None:
        if user.waiting:
            del self._waiting[user.counter, user.rank]
            self._waiting[user.counter + cost, user.rank] = user
        user.counter += cost
