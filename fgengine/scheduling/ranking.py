"""A set of requests sorted by priority, with cheap access to both ends. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sortedcontainers import SortedList

from fgengine.request import Request
from fgengine.scheduling.policy import Priority


class Ranking:
    """A set of requests that yields its last or its first members without looking at the others.

    A request's priority may change while it is in the set. Call ``touch`` if it may have become larger. A
    priority that has become smaller is detected when the request is reached. ``descending`` is exact if every
    request whose priority became larger was touched. A change costs O(log n), at the next iteration.

        ranking = Ranking(policy.priority)
        ranking.add(request)
        ranking.touch([request])        # after a step
        victim = next(ranking.descending())
    """

    def __init__(self, priority: Callable[[Request], Priority]) -> None:
        self._priority = priority
        self._sorted: Any = SortedList()
        """(priority, serial, request), ascending; the serial decides between equal priorities."""
        self._entries: dict[str, tuple[Priority, int, Request]] = {}
        """The entry of each sorted member, by request id."""
        self._touched: dict[str, Request] = {}
        """Members whose place may be wrong, and new members without a place."""
        self._serial = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries or request_id in self._touched

    def add(self, request: Request) -> None:
        """Add a member; its priority is computed at the next iteration."""
        self._touched[request.id] = request

    def discard(self, request_id: str) -> None:
        """Remove a member; does nothing if it is not in the set."""
        self._touched.pop(request_id, None)
        entry = self._entries.pop(request_id, None)
        if entry is not None:
            self._sorted.remove(entry)

    def touch(self, requests: Iterable[Request]) -> None:
        """Record that the priorities of these members may have changed."""
        self._touched.update((request.id, request) for request in requests)

    def rebuild(self) -> None:
        """Sort all members again, because any priority may have changed. Costs O(n log n)."""
        members = {entry[2].id: entry[2] for entry in self._entries.values()} | self._touched
        self._touched.clear()
        entries = [
            (self._priority(request), serial, request) for serial, request in enumerate(members.values())
        ]
        self._serial = len(entries)
        self._entries = {entry[2].id: entry for entry in entries}
        self._sorted = SortedList(entries)

    def descending(self) -> Iterator[tuple[Priority, Request]]:
        """Yield the members with their priorities, the largest first.

        Any change ends the iterator's validity.
        """
        self._settle()
        index = len(self._sorted)
        while index > 0:
            for entry in self._sorted.islice(0, index, reverse=True):
                current = self._priority(entry[2])
                if current != entry[0]:
                    break  # moving the entry invalidates this iteration
                index -= 1
                yield current, entry[2]
            else:
                return
            self._move(entry, current)
            if current > entry[0]:
                index -= 1
                yield current, entry[2]

    def ascending(self) -> Iterator[Request]:
        """Yield the members in ascending order of their last known priorities.

        Any change ends the iterator's validity.
        """
        self._settle()
        for _, _, request in self._sorted:
            yield request

    def _settle(self) -> None:
        """Move the touched members to their places."""
        for request_id, request in self._touched.items():
            current = self._priority(request)
            entry = self._entries.get(request_id)
            if entry is None:
                self._serial += 1
                new = self._entries[request_id] = (current, self._serial, request)
                self._sorted.add(new)
            elif entry[0] != current:
                self._move(entry, current)
        self._touched.clear()

    def _move(self, entry: tuple[Priority, int, Request], priority: Priority) -> None:
        self._sorted.remove(entry)
        moved = self._entries[entry[2].id] = (priority, entry[1], entry[2])
        self._sorted.add(moved)
