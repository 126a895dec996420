"""All connections of the server: how many there may be, how long each may take, and which ends first.

A connection is in one phase at a time. The connections in a phase are kept in the order in which they entered
it. So the one that is late next is always the first, and no connection needs a timer of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol


class Phase(Enum):
    """What a connection waits for."""

    HEAD = auto()
    """The rest of a request's head. A new connection begins here."""
    EXTRA = auto()
    """The same, on a connection above the limit."""
    BODY = auto()
    """The rest of a request's body."""
    ANSWER = auto()
    """The answer, until it is sent. This may take any time: the queue and the engine decide."""
    IDLE = auto()
    """The next request."""
    LEAVING = auto()
    """The client's end after a refusal. If the server closed first, the client could lose the answer."""
    CLOSING = auto()
    """The event loop, which closes it."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a client may take."""

    head: float = 10.0
    """From the start of a connection, or of a later request, to the end of the request's head; also for a TLS
    handshake. The answer is 408."""
    body: float = 60.0
    """For each ``PIECE_BYTES`` of a request's body, or for the rest of it. The answer is 408."""
    idle: float = 75.0
    """Between two requests. A proxy in front must close its idle connections earlier than this."""
    write: float = 120.0
    """Without the client's machine taking a byte of the answer. A client that reads slowly is not late."""
    extra: float = 2.0
    """Instead of ``head`` on a connection above the limit."""
    leaving: float = 2.0
    """For which the rest of a refused request is read and thrown away."""


PIECE_BYTES = 1024
"""A body that has grown by less has made no progress: one byte a minute must not keep a place."""
STALLED_SECONDS = 2.0
"""A body without progress for this long may be refused when others need its place or its memory."""
BODY_BUDGET = 128 * 2**20
"""Bytes that all unfinished bodies may have together, after decompression."""
SMALL_BODY = 64 * 2**10
"""A body up to this size (bytes) is read even if the budget is spent. So large bodies do not delay it."""
EXTRA_CONNECTIONS = 32
"""Connections above the limit. On them, /health is answered and all else is refused with 503."""
CLOSING_CONNECTIONS = 96
"""Sockets above the limit: extra ones, those of refused clients, and those that are being closed."""
CANDIDATES = 16
"""Number of the oldest unfinished heads that are looked at when one has to go."""
TICK_SECONDS = 0.25
"""Time between two looks at who is late."""
FULL = "the server has too many open connections: try again in 1 s"
"""The message of a 503."""


class Refusal(Exception):
    """A request is refused because of its connection or its form as HTTP. The message is for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Connection(Protocol):
    """What this module needs of a connection."""

    def refuse_head(self, refusal: Refusal) -> None:
        """Answer the unfinished head with an error and close the connection."""

    def refuse_body(self, refusal: Refusal) -> None:
        """Make the handler that reads the unfinished body raise the refusal."""

    def drop(self) -> None:
        """Close the connection at once."""

    def has_unread(self) -> bool:
        """Return whether the client has sent bytes that the server has not read yet."""

    def unsent(self) -> int:
        """Return the number of bytes that the client's machine has not taken."""

    def all_sent(self) -> None:
        """React to the end of the sending that was watched."""


@dataclass(slots=True)
class ConnectionCounters:
    """Counters of connections since the server started."""

    connections_open: int = 0
    connections_refused: int = 0
    """Connections that were refused with 503, or closed while idle, because there were too many or their
    unfinished bodies were too large."""
    connections_timed_out: int = 0
    """Clients that took too long to send a request or to read an answer."""
    malformed_requests: int = 0
    """Requests that are not HTTP, or not in a form that the server takes."""


@dataclass(slots=True)
class _Place:
    phase: Phase
    since: float
    held: int = 0


@dataclass(slots=True)
class _Writing:
    unsent: int
    since: float


@dataclass
class Connections:
    """The open connections, each in its phase. For one event loop only.

    ``limit``: how many connections are served. When there are more, the least useful one is closed: an idle
    one, else one with an unfinished head, else one whose body has stalled. A complete request is never
    dropped. If there is none to close, the new connection is an extra one.

        phase = connections.open(connection)
        connections.enter(connection, Phase.ANSWER)
        connections.closed(connection)
    """

    limit: int
    timeouts: Timeouts = field(default_factory=Timeouts)
    body_budget: int = BODY_BUDGET
    counters: ConnectionCounters = field(default_factory=ConnectionCounters)
    on_close: Callable[[], None] = lambda: None
    """Called after a connection has closed."""

    def __post_init__(self) -> None:
        self._queues: dict[Phase, OrderedDict[Connection, None]] = {phase: OrderedDict() for phase in Phase}
        self._places: dict[Connection, _Place] = {}
        self._writing: dict[Connection, _Writing] = {}
        self._held = 0
        self._tick: asyncio.TimerHandle | None = None

    @property
    def crowded(self) -> bool:
        """Whether the next connection needs the place of another one."""
        return self._served() >= self.limit

    @property
    def full(self) -> bool:
        """Whether no more sockets may be opened, not even to refuse their requests."""
        return len(self._places) >= self.limit + CLOSING_CONNECTIONS

    def open(self, connection: Connection) -> Phase:
        """Add a new connection, and close another one if there are too many; return its phase."""
        if self.crowded:
            self._make_room()
        phase = Phase.EXTRA if self.crowded else Phase.HEAD
        extra = len(self._queues[Phase.EXTRA])
        if extra >= EXTRA_CONNECTIONS and (oldest := self._half_head(Phase.EXTRA)) is not None:
            self._refuse_head(oldest, Refusal(503, FULL))
        if len(self._queues[Phase.LEAVING]) >= EXTRA_CONNECTIONS:
            self._drop(next(iter(self._queues[Phase.LEAVING])))
        self._places[connection] = _Place(phase, time.monotonic())
        self._queues[phase][connection] = None
        self.counters.connections_open += 1
        if self._tick is None:
            self._tick = asyncio.get_running_loop().call_later(TICK_SECONDS, self._on_tick)
        return phase

    def phase(self, connection: Connection) -> Phase:
        """Return the phase of a connection."""
        place = self._places.get(connection)
        return Phase.CLOSING if place is None else place.phase

    def enter(self, connection: Connection, phase: Phase) -> None:
        """Record that a connection enters a phase, or that it has made progress in its phase."""
        place = self._places.get(connection)
        if place is None:
            return
        del self._queues[place.phase][connection]
        self._queues[phase][connection] = None
        place.phase, place.since = phase, time.monotonic()
        if phase is not Phase.BODY:
            self._hold(place, 0)

    def hold(self, connection: Connection, size: int) -> None:
        """Record the size (bytes) of a connection's unfinished body. It is refused if it is one too much."""
        place = self._places.get(connection)
        if place is None or size <= place.held:
            return
        self._hold(place, size)
        if size > SMALL_BODY and self._held > self.body_budget:
            victim = self._stalled_body(above=SMALL_BODY) or connection
            message = "the server holds too many large unfinished requests: try again in 1 s"
            self.counters.connections_refused += 1
            self._refuse_body(victim, Refusal(503, message))

    def refuse_bodies(self, message: str) -> None:
        """Refuse all requests whose bodies are not complete."""
        for connection in list(self._queues[Phase.BODY]):
            self._refuse_body(connection, Refusal(503, message))

    def watch_writing(self, connection: Connection) -> None:
        """Close the connection if its client takes nothing of what is sent for too long."""
        if connection in self._places and connection not in self._writing:
            self._writing[connection] = _Writing(connection.unsent(), time.monotonic())

    def closed(self, connection: Connection) -> None:
        """Remove a connection that has closed."""
        place = self._places.pop(connection, None)
        if place is None:
            return
        self._hold(place, 0)
        del self._queues[place.phase][connection]
        self._writing.pop(connection, None)
        self.counters.connections_open -= 1
        self.on_close()

    def stop(self) -> None:
        """Stop looking at who is late."""
        if self._tick is not None:
            self._tick.cancel()

    def _served(self) -> int:
        return len(self._places) - sum(len(self._queues[p]) for p in (Phase.LEAVING, Phase.CLOSING))

    def _hold(self, place: _Place, size: int) -> None:
        self._held += size - place.held
        place.held = size

    def _make_room(self) -> None:
        if self._queues[Phase.IDLE]:
            self._drop(next(iter(self._queues[Phase.IDLE])))
        elif (half := self._half_head(Phase.HEAD)) is not None:
            self._refuse_head(half, Refusal(503, FULL))
        elif (stalled := self._stalled_body()) is not None:
            self._refuse_body(stalled, Refusal(503, FULL))
        else:
            return
        self.counters.connections_refused += 1

    def _half_head(self, phase: Phase) -> Connection | None:
        """Return the oldest of the connections in a phase, unless the rest of its head has already come."""
        for connection in itertools.islice(self._queues[phase], CANDIDATES):
            if not connection.has_unread():
                return connection
        return None

    def _stalled_body(self, above: int = -1) -> Connection | None:
        """Return the connection whose body is larger than ``above`` and has stalled for the longest time."""
        latest = time.monotonic() - STALLED_SECONDS
        for connection in self._queues[Phase.BODY]:
            place = self._places[connection]
            if place.since > latest:
                return None
            if place.held > above:
                return connection
        return None

    def _drop(self, connection: Connection) -> None:
        self.enter(connection, Phase.CLOSING)
        connection.drop()

    def _refuse_head(self, connection: Connection, refusal: Refusal) -> None:
        self.enter(connection, Phase.CLOSING)
        connection.refuse_head(refusal)

    def _refuse_body(self, connection: Connection, refusal: Refusal) -> None:
        self.enter(connection, Phase.LEAVING)
        connection.refuse_body(refusal)

    def _on_tick(self) -> None:
        times, counters = self.timeouts, self.counters
        for phase, seconds in ((Phase.HEAD, times.head), (Phase.EXTRA, times.extra)):
            for connection in self._late(phase, seconds):
                counters.connections_timed_out += 1
                message = f"the head of the request was not complete after {seconds:g} s"
                self._refuse_head(connection, Refusal(408, message))
        for connection in self._late(Phase.BODY, times.body):
            counters.connections_timed_out += 1
            message = f"less than {PIECE_BYTES} bytes of the body arrived in {times.body:g} s"
            self._refuse_body(connection, Refusal(408, message))
        for phase, seconds in ((Phase.IDLE, times.idle), (Phase.LEAVING, times.leaving)):
            for connection in self._late(phase, seconds):
                self._drop(connection)
        self._check_writing()
        self._tick = None
        if self._places:
            self._tick = asyncio.get_running_loop().call_later(TICK_SECONDS, self._on_tick)

    def _late(self, phase: Phase, seconds: float) -> Iterator[Connection]:
        """Yield the connections that are in a phase for too long. The caller moves each to another phase."""
        latest = time.monotonic() - seconds
        queue = self._queues[phase]
        while queue and self._places[connection := next(iter(queue))].since <= latest:
            yield connection

    def _check_writing(self) -> None:
        now = time.monotonic()
        for connection, writing in list(self._writing.items()):
            unsent = connection.unsent()
            if unsent == 0:
                del self._writing[connection]
                connection.all_sent()
            elif unsent != writing.unsent:
                self._writing[connection] = _Writing(unsent, now)
            elif now - writing.since > self.timeouts.write:
                self.counters.connections_timed_out += 1
                del self._writing[connection]
                self._drop(connection)
