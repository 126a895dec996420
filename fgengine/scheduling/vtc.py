"""The virtual token counter: fair among users (Sheng et al., Fairness in Serving LLMs, OSDI'24).

Each user has a counter of the service it got, in weighted tokens: ``PROMPT_WEIGHT`` a prompt token, charged
when a request starts, ``OUTPUT_WEIGHT`` a generated one. A free place goes to the earliest request of the
waiting user with the smallest counter (the paper's algorithm 2). Whoever comes to wait anew is lifted to the
smallest counter of those who wait: idleness is not saved up. Of two users who wait all the time, none gets
more than a constant of service over the other, however many requests it sends.
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
"""The paper's, after what tokens cost at commercial services."""
REMEMBERED_USERS = 10_000
"""Counters kept of users without a request; the user gone longest is forgotten first."""


@dataclass(slots=True, eq=False)
class _User:
    name: str
    rank: int
    """Distinct: decides between equal counters."""
    counter: int
    waiting: OrderedDict[str, _Job] = field(default_factory=OrderedDict)
    """By request id, in order of arrival. A linked list: its front is left and a dict would keep the gap."""
    num_requests: int = 0


@dataclass(slots=True, eq=False)
class _Job:
    request: Request
    user: _User
    prompts_before: int
    """Weighted prompt tokens of its user's requests ahead of it, counted from an origin of the user's own."""
    start: int | None = None
    """When it started, as a running number; None: it waits."""
    charged_tokens: int = 0
    """Generated tokens that its user has been charged for."""

    @property
    def prompt_cost(self) -> int:
        return PROMPT_WEIGHT * self.request.prompt_len


class VTC(Policy):
    """Requests that have started, in order of start, then the waiting ones, the least served user's first.

    As in the paper nobody is preempted for fairness: a started request stops only for memory.
    """

    summary = "fair among users by tokens served"
    paper = "VTC, OSDI'24"

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self._jobs: dict[str, _Job] = {}
        self._started: dict[str, _Job] = {}
        self._users: dict[str, _User] = {}
        """Those with a request."""
        self._gone: OrderedDict[str, int] = OrderedDict()
        """Counters of users without one, the longest gone first."""
        self._waiting: Any = SortedDict()
        """Users with a waiting request by (counter, rank)."""
        self._last_waiting: _User | None = None
        """Who was the last to wait."""
        self._serial = 0

    def add(self, request: Request, now: float) -> None:
        user = self._users.get(request.user) or self._welcome(request.user)
        user.num_requests += 1
        if not user.waiting:
            user.counter = max(user.counter, self._level())
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
            self._gone[user.name] = user.counter
            if len(self._gone) > REMEMBERED_USERS:
                self._gone.popitem(last=False)

    def order(self, now: float) -> Iterator[Request]:
        for job in self._started.values():
            yield job.request
        yield from self._merge_waiting()

    def priority(self, request: Request) -> Priority:
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
        """For ever while the batch is full or no request waits. Else a waiting one may be admitted as soon as
        it fits, and which one comes first changes with every token that its user's requests get."""
        full = len(running) >= self.context.max_batch_size
        return math.inf if full or not self._waiting else 0.0

    def counter_of(self, user: str) -> int:
        """Weighted tokens charged to the user, lifts included; 0 for one never seen, or forgotten."""
        return self._users[user].counter if user in self._users else self._gone.get(user, 0)

    def _merge_waiting(self) -> Iterator[Request]:
        """By counter plus the prompts ahead of the same user: as if each were charged when it is given.

        A user is looked at only when its counter comes up, so the first n cost O(n log n).
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

    def _welcome(self, name: str) -> _User:
        self._serial += 1
        user = self._users[name] = _User(name, self._serial, self._gone.pop(name, 0))
        return user

    def _level(self) -> int:
        """The least that anybody who comes to wait has: the smallest waiting counter, or the last one's."""
        if self._waiting:
            counter, _ = self._waiting.peekitem(0)[0]
            return int(counter)
        return self._last_waiting.counter if self._last_waiting else 0

    def _start(self, job: _Job) -> None:
        """Its prompt is charged once, even if its KV is thrown away and computed again."""
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
