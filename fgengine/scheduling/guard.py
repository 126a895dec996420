"""Holds a policy to its contract: what it does wrong is an error with its name and the reason.

Policies come from anywhere. One whose order repeats a request or contradicts its priority would have the
scheduler give a request two places in a batch, or evict what it is about to run: wrong tokens, and no error.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, islice
from operator import lt

from fgengine.request import Request
from fgengine.scheduling.policy import Level, Policy, PolicyError, Priority


class Guarded(Policy):
    """The policy ``inner`` with its answers checked; to the scheduler it is that policy.

    Every method raises PolicyError when the policy's raises anything. ``order`` raises it as well, before it
    gives a request that it should not. It looks ahead by no more than a batch.
    """

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self.context = inner.context
        self.name = inner.context.name or f"{type(inner).__module__}:{type(inner).__qualname__}"
        self._requests: set[Request] = set()
        """Those it was given and that have not ended."""
        self._chunk = inner.context.max_batch_size + 1
        """The scheduler asks for one more than the batch holds before it sees that the batch is full."""
        self._checked: list[Request] = []
        """The head of the order when it was last checked; none of these has ended since."""
        self._unchecked: list[Request] = []
        """The same head, given again without a look at its priorities."""

    def begin_step(self) -> None:
        """The head of the last step's order is of no more use: priorities have changed since."""
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
            place = self.inner.priority(request)
            if math.isnan(sum(place)):
                self._check_numbers(request, place)
        except PolicyError:
            raise
        except Exception as error:
            raise self.raised("priority", error) from error
        return place

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
                self._unchecked = head  # priorities are looked at when the scheduler asks for one
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

    def _check(self, given: list[Request]) -> None:
        """Raises PolicyError unless all are unfinished and their priorities ascend.

        That they ascend strictly shows that none is there twice, that no two are equal, and that the order
        and the priorities agree. What exactly is wrong is looked for only when something is.
        """
        if not self._requests.issuperset(given):
            self._check_known(given)
        if not given and self._requests:
            raise PolicyError(
                self.name, f"its order gives none of the {len(self._requests)} unfinished requests"
            )
        try:
            places = list(map(self.inner.priority, given))
            right = not places or (all(map(lt, places, places[1:])) and not math.isnan(sum(places[0])))
        except Exception as error:
            raise self.raised("priority", error) from error
        if not right:
            self._explain(given, places)

    def _check_known(self, given: list[Request]) -> None:
        for request in given:
            if not isinstance(request, Request):
                raise PolicyError(self.name, f"its order gives {request!r}, which is not a request")
            if request not in self._requests:
                what = "has ended" if request.finish_reason is not None else "it was not given"
                raise PolicyError(self.name, f"its order gives request {request.id!r}, which {what}")

    def _check_numbers(self, request: Request, place: Priority) -> None:
        if any(map(math.isnan, place)):
            raise PolicyError(self.name, f"its priority of request {request.id!r} is not a number: {place}")

    def _explain(self, given: list[Request], places: list[Priority]) -> None:
        seen: set[Request] = set()
        for request, place in zip(given, places, strict=True):
            self._check_numbers(request, place)
            if request in seen:
                raise PolicyError(self.name, f"its order gives request {request.id!r} twice")
            seen.add(request)
        for (first, place), (second, behind) in zip(
            zip(given, places, strict=True), zip(given[1:], places[1:], strict=True), strict=False
        ):
            if place == behind:
                raise PolicyError(
                    self.name,
                    f"it gives the requests {first.id!r} and {second.id!r} the same priority, {place}",
                )
            if not place < behind:
                raise PolicyError(
                    self.name,
                    f"its order gives request {first.id!r} before {second.id!r}, but its priority says the "
                    f"opposite: {place} and {behind}",
                )

    def raised(self, method: str, error: Exception) -> PolicyError:
        """What to raise where the policy's ``method`` has raised ``error``."""
        return PolicyError(self.name, f"its {method}() raised {type(error).__name__}: {error}")
