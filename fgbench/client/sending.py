"""The load generator: requests leave when the schedule says, whatever became of those before (an open loop),
or each when one before has ended (a closed loop)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from fgbench.client.answer import Answer
from fgbench.client.endpoints import Endpoint, error_message, rejection
from fgbench.client.http import Connections
from fgbench.client.state import LoadState
from fgbench.client.streams import StreamError
from fgbench.metrics.record import RequestRecord
from fgbench.workload.workload import RequestSpec

Ended = Literal["complete", "interrupted", "server died"]
T = TypeVar("T")

LIVENESS_SECONDS = 0.5
LEAD_SECONDS = 0.05
"""From now to the start of the load: for everything to be in place when the first request leaves."""
PAUSE_SECONDS = 1.0
"""Pause of a closed loop's worker after a rejection without a Retry-After: else a full server would be sent
the whole load at once."""
MAX_PAUSE_SECONDS = 60.0
"""Whatever the server asks."""
TICK_SECONDS = 0.1
"""How often ``LoadState.elapsed`` moves on."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a load goes and how it is spoken to."""

    url: str
    """``http://host:port``, without the endpoint's path."""
    model: str
    endpoint: Endpoint
    request_timeout: float = 3600.0
    """Seconds until an unfinished answer counts as an error. Long: above capacity, waiting is the result."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request."""


async def run_load(
    requests: Sequence[RequestSpec],
    target: Target,
    on_record: Callable[[RequestRecord], None],
    *,
    state: LoadState | None = None,
    alive: Callable[[], bool] = lambda: True,
    concurrency: int | None = None,
    duration: float = math.inf,
) -> Ended:
    """Send every request at ``start + scheduled`` and hand each record over as its response ends.

    With ``concurrency`` it is a closed loop: so many workers send the requests in their order, each the next
    when its last has ended, which then is the moment it counts as scheduled. What is scheduled ``duration``
    seconds after the start or later is not sent; what is in flight then is awaited. Nothing is sent twice,
    but a worker whose request was rejected waits for as long as the server asks, or ``PAUSE_SECONDS``.

    SIGINT or SIGTERM stops the sending and drops what is in flight: such requests leave no record. So does a
    server for which ``alive`` turns False. A request's own failure never stops the load.
    """
    state = state or LoadState.of(requests)
    state.bound(concurrency, duration)
    connections = Connections(target.url, target.endpoint.path, target.headers)
    messages = [  # no encoding while timing
        connections.request(target.endpoint.body(spec, target.model)) for spec in requests
    ]
    _allow_many_connections()
    with _quiet_gc(), _stop_signal() as stop:
        async with connections:
            start = time.perf_counter() + LEAD_SECONDS

            async def send(spec: RequestSpec, message: bytes) -> float:
                state.leave(max(0.0, time.perf_counter() - start - spec.scheduled))
                record, pause = await _exchange(connections, target, spec, message, start, state)
                state.take(record)
                on_record(record)
                return (record.finished or 0.0) + pause

            todo = zip(requests, messages, strict=True)
            if concurrency is None:
                sending = _dispatch(todo, send, start, duration)
            else:
                sending = _take_turns(todo, send, start, duration, concurrency, state)
            jobs = [
                asyncio.create_task(job)
                for job in (
                    sending,
                    stop.wait(),
                    _watch(state, alive, start),
                )
            ]
            done, _ = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            state.elapsed = time.perf_counter() - start
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
    for job in done:
        job.result()  # a mistake of ours is not an outcome
    if jobs[0] in done:
        return "complete"
    return "interrupted" if jobs[1] in done else "server died"


Send = Callable[[RequestSpec, bytes], Coroutine[Any, Any, float]]
"""Gives the moment from which its worker may send again, seconds after the start."""


async def _dispatch(
    requests: Iterable[tuple[RequestSpec, bytes]], send: Send, start: float, duration: float
) -> None:
    """Begins each request at its time, waiting for none; returns when all have ended."""
    async with _Tasks() as tasks:
        for spec, message in requests:
            if spec.scheduled >= duration:
                break
            while (wait := start + spec.scheduled - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.add(send(spec, message))
        await tasks.all_done()


async def _take_turns(
    requests: Iterable[tuple[RequestSpec, bytes]],
    send: Send,
    start: float,
    duration: float,
    workers: int,
    state: LoadState,
) -> None:
    """A closed loop. A worker is free with the last byte of its answer: what the client does until the next
    request leaves is lag, as it is in an open loop."""
    waiting = iter(requests)

    async def work() -> None:
        free = 0.0
        while free < duration and (turn := next(waiting, None)) is not None:
            spec, message = turn
            state.last_arrival = max(state.last_arrival, free)
            free = max(free, await send(replace(spec, scheduled=free), message))
            if (pause := start + free - time.perf_counter()) > 0 and free < duration:
                await asyncio.sleep(pause)

    await asyncio.sleep(max(0.0, start - time.perf_counter()))
    async with _Tasks() as tasks:
        for _ in range(workers):
            tasks.add(work())
        await tasks.all_done()


async def _watch(state: LoadState, alive: Callable[[], bool], start: float) -> None:
    """Moves ``state.elapsed`` on; returns when the server is dead."""
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
    """On uvloop where it is installed: its per-event cost is about half of asyncio's."""
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
    """Send one request and read its answer to the end. Every failure is in the record's ``error``.

    Also the seconds for which a worker of a closed loop pauses afterwards: 0 unless it was rejected.
    """

    def now() -> float:
        return time.perf_counter() - start

    def take(piece: bytes) -> None:
        state.tokens += answer.feed(piece, time.perf_counter() - start)

    answer = Answer(spec, target.endpoint, now())
    try:
        response = await connections.post(message, take, target.request_timeout)
        if response.status != 200:
            words = error_message(response.body) or response.reason
            if (kind := rejection(response.status, response.body)) is not None:
                asked = PAUSE_SECONDS if response.retry_after is None else response.retry_after
                return answer.record(now(), rejected=f"{kind}: {words}"), min(asked, MAX_PAUSE_SECONDS)
            return answer.record(now(), f"http {response.status}: {words}"), 0.0
        answer.close(now())
        return answer.record(now()), 0.0
    except asyncio.TimeoutError:
        return answer.record(now(), f"timeout: no complete answer within {target.request_timeout:g} s"), 0.0
    except StreamError as error:
        return answer.record(now(), f"protocol: {error}"), 0.0
    except OSError as error:
        return answer.record(now(), f"connect: {error or type(error).__name__}"), 0.0


def _allow_many_connections() -> None:
    """Each stream is an open file, and the usual limit of 1,024 is one that may be raised."""
    try:
        import resource
    except ImportError:
        return  # Windows has no such limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # macOS refuses "unlimited"
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Tasks:
    """Tasks that end with the block they are in."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._error: BaseException | None = None

    def add(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            self._error = self._error or task.exception()

    async def all_done(self) -> None:
        """Raises what the first to fail raised."""
        if self._running:
            await asyncio.wait(self._running)
        if self._error is not None:
            raise self._error

    async def __aenter__(self) -> _Tasks:
        return self

    async def __aexit__(self, *error: object) -> None:
        left = list(self._running)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


@contextlib.contextmanager
def _stop_signal() -> Iterator[asyncio.Event]:
    """An event set by SIGINT and SIGTERM; elsewhere than in the main thread signals are the caller's."""
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
    """Keeps full collections, which take tens of milliseconds, out of the measured times. What the load
    itself allocates is freed by reference counting; young cycles go on being collected."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
