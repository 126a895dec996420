"""Checks that a policy keeps its contract; a violation raises an error with the policy's name and the reason.

Policies may come from other packages. Without these checks, an order that repeats a request could put it into
a batch twice, and an order that contradicts the priorities could evict a request that is about to run. Both
would produce wrong tokens without an error.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice
from operator import lt

from fgengine.request import Request
from fgengine.scheduling.policy import Level, Policy, PolicyError, Priority


class Guarded(Policy):
    """A wrapper around the policy ``inner`` that checks its results. The scheduler uses it as the policy.

    Every method raises PolicyError if the policy's method raises any exception. ``order`` also raises it
    before it yields a request that breaks the contract. ``order`` reads ahead by at most one batch.
    """

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.context = inner.context
        self.name = inner.context.name or f"{type(inner).__module__}:{type(inner).__qualname__}"
        self._requests: set[Request] = set()
        """The unfinished requests that were added to the policy."""
        self._chunk = inner.context.max_batch_size + 1
        """Requests checked at once: a full batch, and the one the scheduler reads before it stops."""
        self._checked: list[Request] = []
        """The head of the order when it was last checked; none of these has ended since."""
        self._unchecked: list[Request] = []
        """The same head in a later step, yielded before its priorities were checked again."""

    def begin_step(self) -> None:
        """Drop the unchecked head of the last step: priorities have changed since then."""
        self._unchecked = []

    def add(self, request: Request, now: float) -> None:
        try:
            self.inner.add(request, now)
        except Exception as error:
            raise self.raised("add", error) from error
        self._requests.add(request)

    def remove(self, request: Request) -> None:
        self._requests.discard(request)
        self._checked = self._unchecked = []
        try:
            self.inner.remove(request)
        except Exception as error:
            raise self.raised("remove", error) from error

    def order(self, now: float) -> Iterator[Request]:
        return chain.from_iterable(self._checked_chunks(now))

    def priority(self, request: Request) -> Priority:
        if self._unchecked:
            unchecked, self._unchecked = self._unchecked, []
            self._check(unchecked)
        try:
            priority = self.inner.priority(request)
            if math.isnan(sum(priority)):
                self._check_numbers(request, priority)
        except PolicyError:
            raise
        except Exception as error:
            raise self.raised("priority", error) from error
        return priority

    def on_start(self, request: Request) -> None:
        try:
            self.inner.on_start(request)
        except Exception as error:
            raise self.raised("on_start", error) from error

    def on_step(self, request: Request, seconds: float, now: float) -> None:
        try:
            self.inner.on_step(request, seconds, now)
        except Exception as error:
            raise self.raised("on_step", error) from error

    def expected_wait(self, request: Request, now: float) -> float:
        try:
            wait = self.inner.expected_wait(request, now)
            not_a_number = math.isnan(wait)
        except Exception as error:
            raise self.raised("expected_wait", error) from error
        if not_a_number:
            raise PolicyError(self.name, f"its expected_wait of request {request.id!r} is not a number")
        return wait

    def steady_seconds(self, running: Collection[Request], now: float) -> float:
        try:
            seconds = self.inner.steady_seconds(running, now)
            not_a_number = math.isnan(seconds)
        except Exception as error:
            raise self.raised("steady_seconds", error) from error
        if not_a_number:
            raise PolicyError(self.name, "its steady_seconds is not a number")
        return seconds

    def levels(self) -> Sequence[Level]:
        try:
            return self.inner.levels()
        except Exception as error:
            raise self.raised("levels", error) from error

    def _checked_chunks(self, now: float) -> Iterator[list[Request]]:
        try:
            order = iter(self.inner.order(now))
            head = list(islice(order, self._chunk))
            if head and head == self._checked:
                self._unchecked = head  # saves time: checked only if the scheduler asks for a priority
            else:
                self._check(head)
                self._checked, self._unchecked = head, []
            yield head
            last = head[-1:]
            while last and (chunk := list(islice(order, self._chunk))):
                self._check(last + chunk)
                last = chunk[-1:]
                yield chunk
        except (PolicyError, GeneratorExit):
            raise
        except Exception as error:
            raise self.raised("order", error) from error

    def _check(self, ordered: list[Request]) -> None:
        """Check a part of the order: all requests unfinished, their priorities strictly ascending.

        Strictly ascending priorities prove that no request is repeated, that no two priorities are equal, and
        that order and priorities agree. Only if the check fails does ``_explain`` look for the exact reason.

        Raises PolicyError if the check fails.
        """
        if not self._requests.issuperset(ordered):
            self._check_known(ordered)
        if not ordered and self._requests:
            raise PolicyError(
                self.name, f"its order gives none of the {len(self._requests)} unfinished requests"
            )
        try:
            priorities = list(map(self.inner.priority, ordered))
            valid = not priorities or (
                all(map(lt, priorities, priorities[1:])) and not math.isnan(sum(priorities[0]))
            )
        except Exception as error:
            raise self.raised("priority", error) from error
        if not valid:
            self._explain(ordered, priorities)

    def _check_known(self, ordered: list[Request]) -> None:
        for request in ordered:
            if not isinstance(request, Request):
                raise PolicyError(self.name, f"its order gives {request!r}, which is not a request")
            if request not in self._requests:
                reason = "has ended" if request.finish_reason is not None else "it was not given"
                raise PolicyError(self.name, f"its order gives request {request.id!r}, which {reason}")

    def _check_numbers(self, request: Request, priority: Priority) -> None:
        if any(map(math.isnan, priority)):
            raise PolicyError(
                self.name, f"its priority of request {request.id!r} is not a number: {priority}"
            )

    def _explain(self, ordered: list[Request], priorities: list[Priority]) -> None:
        """Raise PolicyError with the exact reason why ``_check`` failed."""
        seen: set[Request] = set()
        for request, priority in zip(ordered, priorities, strict=True):
            self._check_numbers(request, priority)
            if request in seen:
                raise PolicyError(self.name, f"its order gives request {request.id!r} twice")
            seen.add(request)
        for (first, priority), (second, next_priority) in zip(
            zip(ordered, priorities, strict=True),
            zip(ordered[1:], priorities[1:], strict=True),
            strict=False,
        ):
            if priority == next_priority:
                raise PolicyError(
                    self.name,
                    f"it gives the requests {first.id!r} and {second.id!r} the same priority, {priority}",
                )
            if not priority < next_priority:
                raise PolicyError(
                    self.name,
                    f"its order gives request {first.id!r} before {second.id!r}, but its priority says the "
                    f"opposite: {priority} and {next_priority}",
                )

    def raised(self, method: str, error: Exception) -> PolicyError:
        """Return the PolicyError to raise after the policy's ``method`` raised ``error``."""
        return PolicyError(self.name, f"its {method}() raised {type(error).__name__}: {error}")
