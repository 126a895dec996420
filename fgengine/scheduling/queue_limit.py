"""Limits on the queue: requests beyond them are refused, or dropped after a timeout. Pure.

The number of waiting requests is the number of unfinished requests minus a full batch. Preempted requests
count as waiting, too. A preemptive policy starts nearly every request at once, so a limit on requests that
have not started would have no effect.

The limit on prompt tokens and the timeout apply to requests that have not started: none of their tokens was
ever computed.
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
"""Default limit of the waiting work, in seconds of machine time."""
MIN_BATCHES = 6
"""Lower bound of the default limit on waiting requests, in full batches; it applies to slow machines."""
ENDINGS = 64
"""Recently ended requests from which the queue's pace is measured."""
MIN_ENDINGS = 8
"""With fewer ended requests, the predicted pace is used."""
MAX_RETRY_SECONDS = 60.0
"""Maximum ``Retry-After``, seconds; clients of OpenAI's API ignore longer delays."""


@dataclass(frozen=True, slots=True)
class QueueLimit:
    """The limits of the queue. None means no limit."""

    requests: int | None = None
    """Maximum number of waiting requests (unfinished ones beyond a full batch)."""
    prompt_tokens: int | None = None
    """Maximum number of prompt tokens of requests that have not started."""
    timeout: float | None = None
    """Seconds after arrival at which a request that has not started is dropped."""
    seconds_per_request: float | None = None
    """Predicted machine time of a typical request, seconds; None: not known."""

    @classmethod
    def of(cls, config: EngineConfig, speed: Callable[[], Speed | None]) -> QueueLimit:
        """Return the configured limits; those that are not set depend on the machine's speed.

        Args:
            speed: measures or predicts the speed. It is called only if a default needs it. If it returns
                None, the smallest default is used.
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
        """Describe the limits in one sentence, for the messages at a server's start."""
        requests = "any number of" if self.requests is None else f"at most {self.requests:,}"
        text = f"queue: {requests} waiting requests"
        if self.prompt_tokens is not None:
            text += f" and at most {self.prompt_tokens:,} prompt tokens"
        if self.requests is not None and self.seconds_per_request is not None:
            text += f", about {self.requests * self.seconds_per_request:.0f} s of work"
        if self.timeout is not None:
            text += f"; one that has not started after {self.timeout:g} s is dropped"
        return text


NO_LIMIT = QueueLimit()


class Queue:
    """Counts the unfinished requests and enforces the limits.

    Each call takes constant time, plus the time for the requests it returns.
    """

    def __init__(self, limit: QueueLimit, max_batch_size: int) -> None:
        self.limit = limit
        self.prompt_tokens = 0
        """Prompt tokens of the requests that have not started."""
        self.unfinished = 0
        self._batch = max_batch_size
        self._unstarted: dict[str, Request] = {}
        """Requests that have not started, in the order they were added (nearly the order of arrival)."""
        self._endings: deque[float] = deque(maxlen=ENDINGS)
        """Times at which requests ended while others waited; the first entry is when the waiting began."""

    @property
    def unstarted(self) -> int:
        """Number of requests of which no token was ever computed."""
        return len(self._unstarted)

    @property
    def waiting(self) -> int:
        """Number of unfinished requests beyond a full batch."""
        return max(0, self.unfinished - self._batch)

    @property
    def full(self) -> bool:
        """Whether any new request would be refused, even one with the shortest prompt."""
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
        """Raise QueueFull if a new request with a prompt of ``prompt_len`` tokens must be refused."""
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
        """Count a new request."""
        if self.unfinished <= self._batch:
            self._endings.clear()
            self._endings.append(now)
        self.unfinished += 1
        self._unstarted[request.id] = request
        self.prompt_tokens += request.prompt_len

    def start(self, request: Request) -> None:
        """Record that the request's computation begins; another start, after discarded KV, has no effect."""
        if self._unstarted.pop(request.id, None) is not None:
            self.prompt_tokens -= request.prompt_len

    def forget(self, request: Request) -> None:
        """Stop counting a request that has ended in any way."""
        self.start(request)
        self.unfinished -= 1
        self._endings.append(request.phase_since)

    def overdue(self, now: float) -> list[Request]:
        """Return the requests that have waited for their start longer than the timeout.

        The caller must end each of them and call ``forget``.
        """
        found: list[Request] = []
        if self.deadline <= now:
            assert self.limit.timeout is not None
            for request in self._unstarted.values():
                if request.arrival + self.limit.timeout > now:
                    break
                found.append(request)
        return found

    def retry_after(self, now: float) -> float:
        """Return the predicted seconds until the waiting requests are served, at the recent pace."""
        ended = len(self._endings) - 1
        if ended >= MIN_ENDINGS or self.limit.seconds_per_request is None:
            pace = (now - self._endings[0]) / ended if ended > 0 else 0.0
        else:
            pace = self.limit.seconds_per_request
        return min(MAX_RETRY_SECONDS, max(1.0, self.waiting * pace))

    def timeout_error(self, now: float) -> QueueTimeout:
        """Return the error that the client of a dropped request gets."""
        return QueueTimeout(
            f"the request waited for {self.limit.timeout:g} s and had not started (queue_timeout)",
            self.retry_after(now),
        )

    @property
    def _too_many(self) -> bool:
        return self.limit.requests is not None and self.waiting >= self.limit.requests

    def _too_long(self, prompt_len: int) -> bool:
        limit = self.limit.prompt_tokens
        return limit is not None and self.prompt_tokens + prompt_len > limit
