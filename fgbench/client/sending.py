"""The load generator.

In an open loop, requests are sent at their scheduled times, even if earlier requests have not ended. In a
closed loop, a request is sent when an earlier one has ended. In both, a later turn of a conversation is sent
when the answer to the turn before it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from fgbench.client.answer import Answer
from fgbench.client.endpoints import Endpoint, error_message, rejection
from fgbench.client.http import Connections
from fgbench.client.state import LoadState
from fgbench.client.streams import StreamError
from fgbench.metrics.record import RequestRecord
from fgbench.spec.access import OPEN, Access
from fgbench.workload.workload import RequestSpec

Ended = Literal["complete", "interrupted", "server died"]
T = TypeVar("T")

LIVENESS_SECONDS = 0.5
"""Seconds between two checks that the server is alive."""
LEAD_SECONDS = 0.05
"""Seconds from now to the start of the load, so that all tasks exist when the first request is sent."""
PAUSE_SECONDS = 1.0
"""Pause of a closed loop's worker after a rejection without a Retry-After header, in seconds.

Without a pause, a full server would get the complete load at once.
"""
MAX_PAUSE_SECONDS = 60.0
"""Longest pause after a rejection, in seconds, even if the server asks for more."""
TICK_SECONDS = 0.1
"""Seconds between two updates of ``LoadState.elapsed``."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server and the API that a load is sent to."""

    url: str
    """``http://host:port``, without the endpoint's path."""
    model: str
    endpoint: Endpoint
    request_timeout: float = 3600.0
    """Seconds after which an unfinished answer counts as an error; long, because waits are measured too."""
    access: Access = OPEN
    """How the server is reached: headers such as a key, and TLS."""
    count_tokens: Callable[[str], int] | None = None
    """Counts the tokens of an answer that reports none; None: nothing can."""


async def run_load(
    requests: Sequence[RequestSpec],
    target: Target,
    on_record: Callable[[RequestRecord], None],
    *,
    state: LoadState | None = None,
    alive: Callable[[], bool] = lambda: True,
    concurrency: int | None = None,
    max_concurrency: int | None = None,
    duration: float = math.inf,
) -> Ended:
    """Send every request at ``start + scheduled``, and call ``on_record`` when a response ends.

    SIGINT or SIGTERM stops the load and drops the requests in flight, which leave no record. So does a server
    for which ``alive`` returns False. A failed request never stops the load. No request is sent twice.

    Raises at once what ``on_record`` raises: without records, the rest of the load would be useless.

    Args:
        state: Updated during the load, for a display.
        concurrency: Number of workers of a closed loop. They send the requests in order. A worker sends its
            next request when its last one has ended; that moment is the request's scheduled time. After a
            rejection, a worker waits as long as the server asks, or ``PAUSE_SECONDS``.
        max_concurrency: Most requests in flight in an open loop. A request that is due then waits here.
        duration: Seconds after which no request is sent. Requests that are in flight then are completed.
    """
    state = state or LoadState.of(requests)
    state.bound(concurrency, duration)
    connections = Connections(target.url, target.endpoint.path, target.access)
    messages = [  # encoded now, so that encoding takes no time during the load
        connections.request(target.endpoint.body(spec, target.model)) for spec in requests
    ]
    _allow_many_connections()
    with _quiet_gc(), _stop_signal() as stop:
        async with connections:
            start = time.perf_counter() + LEAD_SECONDS
            broken = asyncio.get_running_loop().create_future()

            def keep(record: RequestRecord) -> None:
                if broken.done():
                    return
                try:
                    on_record(record)
                except Exception as error:
                    broken.set_exception(error)

            async def send(spec: RequestSpec, message: bytes) -> float:
                state.leave(max(0.0, time.perf_counter() - start - spec.scheduled))
                record, pause = await _exchange(connections, target, spec, message, start, state)
                state.take(record)
                keep(record)
                return (record.finished or 0.0) + pause

            todo = _conversations(zip(requests, messages, strict=True))
            if concurrency is None:
                sending = _dispatch(todo, send, start, duration, max_concurrency, state)
            else:
                sending = _take_turns(todo, send, start, duration, concurrency, state)
            jobs = [
                asyncio.ensure_future(job)
                for job in (sending, stop.wait(), _watch(state, alive, start), broken)
            ]
            done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            state.elapsed = time.perf_counter() - start
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
    for job in done:
        job.result()  # raises if the record of a request could not be kept
    if jobs[0] in done:
        return "complete"
    return "interrupted" if jobs[1] in done else "server died"


Send = Callable[[RequestSpec, bytes], Coroutine[Any, Any, float]]
"""Sends a request; returns when its worker may send the next one, in seconds since the start."""
Conversation = list[tuple[RequestSpec, bytes]]
"""Requests of which each is sent after the answer to the one before it; usually only one request."""


def _conversations(requests: Iterable[tuple[RequestSpec, bytes]]) -> list[Conversation]:
    """Group requests into conversations, in the order of their first turns."""
    found: list[Conversation] = []
    current: dict[str, Conversation] = {}
    for spec, message in requests:
        if not spec.turn or spec.conversation not in current:
            current[spec.conversation] = []
            found.append(current[spec.conversation])
        current[spec.conversation].append((spec, message))
    return found


async def _continue(
    turns: Conversation, send: Send, start: float, duration: float, ended: float, state: LoadState
) -> float:
    """Send the later turns of a conversation; return when the last one ended.

    Each is sent after the answer before it and its think time, and not before its scheduled time.

    ``ended``: when the answer to the first turn ended. No turn is sent after ``duration``.
    """
    for spec, message in turns:
        due = max(ended + spec.think_time, spec.scheduled)
        if (pause := start + due - time.perf_counter()) > 0:
            await asyncio.sleep(min(pause, max(0.0, start + duration - time.perf_counter())))
        if due >= duration:
            break
        state.last_arrival = max(state.last_arrival, due)
        ended = await send(replace(spec, scheduled=due), message)
    return ended


async def _dispatch(
    conversations: Sequence[Conversation],
    send: Send,
    start: float,
    duration: float,
    max_concurrency: int | None,
    state: LoadState,
) -> None:
    """Start each conversation at its time, without waiting for others; return when all have ended.

    With ``max_concurrency``, a request that is due waits until fewer are in flight, in the order of arrival.
    """
    if max_concurrency is not None:
        send = _at_most(max_concurrency, send)

    async def converse(turns: Conversation) -> None:
        ended = await send(*turns[0])
        await _continue(turns[1:], send, start, duration, ended, state)

    async with _Tasks() as tasks:
        for turns in conversations:
            spec, message = turns[0]
            if spec.scheduled >= duration:
                break
            while (wait := start + spec.scheduled - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.add(send(spec, message) if len(turns) == 1 else converse(turns))
        await tasks.all_done()


def _at_most(limit: int, send: Send) -> Send:
    """Return a function that sends like ``send``, with at most ``limit`` requests in flight."""
    places = asyncio.Semaphore(limit)

    async def send_within(spec: RequestSpec, message: bytes) -> float:
        async with places:  # serves its waiters in order
            return await send(spec, message)

    return send_within


async def _take_turns(
    conversations: Sequence[Conversation],
    send: Send,
    start: float,
    duration: float,
    workers: int,
    state: LoadState,
) -> None:
    """Run a closed loop, in which each worker has one conversation at a time.

    A worker is free when the last byte of its answer arrives. The time that the client then needs to send the
    next request is lag, as in an open loop.
    """
    waiting = iter(conversations)

    async def work() -> None:
        free = 0.0
        while free < duration and (turns := next(waiting, None)) is not None:
            spec, message = turns[0]
            state.last_arrival = max(state.last_arrival, free)
            free = max(free, await send(replace(spec, scheduled=free), message))
            free = max(free, await _continue(turns[1:], send, start, duration, free, state))
            if (pause := start + free - time.perf_counter()) > 0 and free < duration:
                await asyncio.sleep(pause)

    await asyncio.sleep(max(0.0, start - time.perf_counter()))
    async with _Tasks() as tasks:
        for _ in range(workers):
            tasks.add(work())
        await tasks.all_done()


async def _watch(state: LoadState, alive: Callable[[], bool], start: float) -> None:
    """Update ``state.elapsed`` until the server is dead."""
    checked = start
    while True:
        now = time.perf_counter()
        state.elapsed = max(0.0, now - start)
        if now - checked >= LIVENESS_SECONDS:
            checked = now
            if not alive():
                return
        await asyncio.sleep(TICK_SECONDS)


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine with uvloop, if it is installed: it takes half as long per event as asyncio."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    result: T = uvloop.run(main)
    return result


async def _exchange(
    connections: Connections,
    target: Target,
    spec: RequestSpec,
    message: bytes,
    start: float,
    state: LoadState,
) -> tuple[RequestRecord, float]:
    """Send one request and read its answer. Every failure is in the record's ``error``.

    Returns the record, and the seconds for which a worker of a closed loop must pause: 0 unless the request
    was rejected.
    """

    def now() -> float:
        return time.perf_counter() - start

    def take(piece: bytes) -> None:
        state.tokens += answer.feed(piece, time.perf_counter() - start)

    answer = Answer(spec, target.endpoint, now(), target.count_tokens)
    try:
        response = await connections.post(message, take, target.request_timeout)
        if response.status != 200:
            message_text = error_message(response.body) or response.reason
            if (kind := rejection(response.status, response.body)) is not None:
                pause = PAUSE_SECONDS if response.retry_after is None else response.retry_after
                return answer.record(now(), rejected=f"{kind}: {message_text}"), min(pause, MAX_PAUSE_SECONDS)
            return answer.record(now(), f"http {response.status}: {message_text}"), 0.0
        answer.close(now())
        record = answer.record(now())
        if record.ok:
            is_text = target.endpoint.wishes.is_text(spec)
            state.usage.add(spec, answer.prompt_tokens, answer.cached_tokens, is_text=is_text)
        return record, 0.0
    except asyncio.TimeoutError:
        return answer.record(now(), f"timeout: no complete answer within {target.request_timeout:g} s"), 0.0
    except StreamError as error:
        return answer.record(now(), f"protocol: {error}"), 0.0
    except OSError as error:
        return answer.record(now(), f"connect: {error or type(error).__name__}"), 0.0


def _allow_many_connections() -> None:
    """Raise the limit on open files, which is usually 1,024: each stream is an open file."""
    try:
        import resource
    except ImportError:
        return  # Windows has no such limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # macOS refuses "unlimited"
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Tasks:
    """A context manager for tasks; at its end, tasks that still run are cancelled."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._error: BaseException | None = None

    def add(self, work: Coroutine[Any, Any, Any]) -> None:
        """Start a task."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            self._error = self._error or task.exception()

    async def all_done(self) -> None:
        """Wait for all tasks. Raises the exception of the first task that failed."""
        if self._running:
            await asyncio.wait(self._running)
        if self._error is not None:
            raise self._error

    async def __aenter__(self) -> _Tasks:
        return self

    async def __aexit__(self, *error: object) -> None:
        unfinished = list(self._running)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)


@contextlib.contextmanager
def _stop_signal() -> Iterator[asyncio.Event]:
    """Yield an event that SIGINT and SIGTERM set. Outside the main thread, it handles no signals."""
    stop = asyncio.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}
    for number in signals:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])


@contextlib.contextmanager
def _quiet_gc() -> Iterator[None]:
    """Prevent full garbage collections during the load, because one takes tens of milliseconds.

    Objects that exist now are left out of collections (``gc.freeze``). Newer objects are still collected.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
