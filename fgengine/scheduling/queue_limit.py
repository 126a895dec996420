"""How many requests may wait, and for how long: those beyond it are refused or dropped. Pure.

A request waits while it is unfinished and a batch has no place for it: what counts against the bound is the
number of unfinished requests less a full batch. Those that were preempted count too. A preemptive policy
starts nearly every request at once, so a bound on requests that have not started would bound nothing there.
Prompt tokens and the timeout are about the requests of which no token was ever computed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fgengine.config import EngineConfig
from fgengine.request import Request
from fgengine.scheduling.refusal import QueueFull, QueueTimeout
from fgengine.speed import TYPICAL_PROMPT, Speed

DEFAULT_SECONDS = 60.0
"""The work that may wait by default, in seconds of the machine's time."""
MIN_BATCHES = 6
"""Batches of requests that may wait by default, however slow the machine is."""
ENDINGS = 64
"""The pace of a queue is that of so many last requests that ended."""
MIN_ENDINGS = 8
"""With fewer of them the pace is the predicted one."""
MAX_RETRY_SECONDS = 60.0
"""Clients of OpenAI's API take no longer delay seriously."""


@dataclass(frozen=True, slots=True)
class QueueLimit:
    """None: no limit."""

    requests: int | None = None
    """Unfinished requests beyond those of a full batch."""
    prompt_tokens: int | None = None
    """Of requests that have not started."""
    timeout: float | None = None
    """Seconds after its arrival at which a request that has not started is dropped."""
    seconds_per_request: float | None = None
    """The machine's time that a typical request is predicted to take; None: not known."""

    @classmethod
    def of(cls, config: EngineConfig, speed: Callable[[], Speed | None]) -> QueueLimit:
        """The settings' limits, and for those left open the default, in proportion to the machine's speed.

        ``speed`` is called only where a default needs it; None: unknown, the least default then.
        """
        requests, tokens, known = config.max_queue, config.max_queue_tokens, None
        if requests == 0 and tokens is None:
            tokens = 0
        if requests is None or tokens is None:
            known = speed()
        if requests is None:
            served = DEFAULT_SECONDS / known.seconds_per_request if known else 0.0
            requests = max(MIN_BATCHES * config.max_batch_size, int(served))
        if tokens is None:
            computed = DEFAULT_SECONDS * known.prompt_tokens_per_second if known else 0.0
            tokens = max(2 * TYPICAL_PROMPT * requests, int(computed))
        seconds = known.seconds_per_request if known else None
        return cls(requests or None, tokens or None, config.queue_timeout, seconds)

    def describe(self) -> str:
        """In a sentence, for a server's start."""
        requests = "any number of" if self.requests is None else f"at most {self.requests:,}"
        said = f"queue: {requests} waiting requests"
        if self.prompt_tokens is not None:
            said += f" and at most {self.prompt_tokens:,} prompt tokens"
        if self.requests is not None and self.seconds_per_request is not None:
            said += f", about {self.requests * self.seconds_per_request:.0f} s of work"
        if self.timeout is not None:
            said += f"; one that has not started after {self.timeout:g} s is dropped"
        return said


NO_LIMIT = QueueLimit()


class Queue:
    """Counts the unfinished requests. Every call takes constant time, but for the requests it gives back."""

    def __init__(self, limit: QueueLimit, max_batch_size: int) -> None:
        self.limit = limit
        self.prompt_tokens = 0
        """Of the requests that have not started."""
        self.unfinished = 0
        self._batch = max_batch_size
        self._unstarted: dict[str, Request] = {}
        """In the order in which they were added, which is that of arrival but for moments."""
        self._endings: deque[float] = deque(maxlen=ENDINGS)
        """When requests ended while others waited; the first entry is when the waiting began."""

    @property
    def unstarted(self) -> int:
        """Requests of which no token was ever computed."""
        return len(self._unstarted)

    @property
    def waiting(self) -> int:
        """Unfinished requests beyond a full batch."""
        return max(0, self.unfinished - self._batch)

    @property
    def full(self) -> bool:
        """Whether a request would be refused, however short its prompt is."""
        return self.unfinished >= self._batch and (
            self._too_many or (self.unstarted > 0 and self._too_long(1))
        )

    @property
    def deadline(self) -> float:
        """When the next request is dropped unless it starts, on the engine's clock; infinite: never."""
        if self.limit.timeout is None or not self._unstarted:
            return math.inf
        return next(iter(self._unstarted.values())).arrival + self.limit.timeout

    def check(self, prompt_len: int, now: float) -> None:
        """Raises QueueFull where a request with such a prompt has to be refused."""
        if self.unfinished < self._batch:
            return
        if self._too_many:
            raise QueueFull(
                f"the queue is full: {self.waiting:,} requests wait (max_queue)", self.retry_after(now)
            )
        if self._unstarted and self._too_long(prompt_len):
            raise QueueFull(
                f"the queue is full: {self.prompt_tokens:,} prompt tokens wait, and the limit is "
                f"{self.limit.prompt_tokens:,} (max_queue_tokens)",
                self.retry_after(now),
            )

    def add(self, request: Request, now: float) -> None:
        """An engine took the request."""
        if self.unfinished <= self._batch:
            self._endings.clear()
            self._endings.append(now)
        self.unfinished += 1
        self._unstarted[request.id] = request
        self.prompt_tokens += request.prompt_len

    def start(self, request: Request) -> None:
        """Its computation begins. It may begin again later, where its KV was thrown away."""
        if self._unstarted.pop(request.id, None) is not None:
            self.prompt_tokens -= request.prompt_len

    def forget(self, request: Request) -> None:
        """It has ended, in whatever way."""
        self.start(request)
        self.unfinished -= 1
        self._endings.append(request.phase_since)

    def overdue(self, now: float) -> list[Request]:
        """Those that have waited for their start for longer than the timeout; ``forget`` is the caller's."""
        found: list[Request] = []
        if self.deadline <= now:
            assert self.limit.timeout is not None
            for request in self._unstarted.values():
                if request.arrival + self.limit.timeout > now:
                    break
                found.append(request)
        return found

    def retry_after(self, now: float) -> float:
        """Seconds in which what waits now will have been served, at the pace of the last requests."""
        ended = len(self._endings) - 1
        if ended >= MIN_ENDINGS or self.limit.seconds_per_request is None:
            pace = (now - self._endings[0]) / ended if ended > 0 else 0.0
        else:
            pace = self.limit.seconds_per_request
        return min(MAX_RETRY_SECONDS, max(1.0, self.waiting * pace))

    def timeout_error(self, now: float) -> QueueTimeout:
        """What a client is to be told of a request that was dropped."""
        return QueueTimeout(
            f"the request waited for {self.limit.timeout:g} s and had not started (queue_timeout)",
            self.retry_after(now),
        )

    @property
    def _too_many(self) -> bool:
        return self.limit.requests is not None and self.waiting >= self.limit.requests

    def _too_long(self, prompt_len: int) -> bool:
        most = self.limit.prompt_tokens
        return most is not None and self.prompt_tokens + prompt_len > most
