"""The server's log: one line for each request when it ends, and the messages of all modules, on stderr.

    with logging_to(sys.stderr, "info", "text"):
        ...

A line is ``TIME LEVEL`` and the message, or one JSON object. A thread makes and writes the lines a few times
a second, so that neither their number nor a slow reader of stderr delays the streams. Requests that did not
finish get at most ``MAX_LINES_PER_SECOND`` lines; the others are only counted. So a flood of them does not
fill the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import re
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TextIO

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from fgengine.server.routes import PROBES

if TYPE_CHECKING:
    from fgengine.server.options import LogFormat, LogLevel

Outcome = Literal["finished", "aborted", "refused", "rejected", "timed_out", "failed"]
MAX_LINES_PER_SECOND = 20
"""Lines in each second about requests that did not finish, and about connections that sent no HTTP."""
SUMMARY_SECONDS = 1.0
WRITE_SECONDS = 0.2
"""Seconds for which a line may wait for others to be written with it. Warnings and errors do not wait."""
PATIENCE_SECONDS = 1.0
"""Seconds for which the end of the server waits for a reader of stderr."""
MAX_WAITING = 100_000
"""Lines that may wait while stderr is blocked. Later ones are only counted."""
MAX_REASON = MAX_PATH = 200
_ID = re.compile(r"[\x21-\x7e]{1,128}")
_PLAIN = re.compile(r"[\x21\x23-\x7e]+")
"""A value that needs no quotes: printable ASCII without spaces and quotes."""
_CLIENTS_FAULT = (HttpProcessingError, ConnectionError, web.RequestPayloadError)
_LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error")}

log = logging.getLogger("fgengine.server")


class Generated(Protocol):
    """The part of ``fgengine.server.generation.Generation`` that the log reports."""

    output_tokens: int
    finish_reason: Any
    first_at: float | None


class Entry:
    """A request while it is served, and what its line will report."""

    __slots__ = ("generations", "id", "prompt_tokens", "started")

    def __init__(self, id: str, started: float) -> None:
        self.id = id
        self.started = started
        """When its headers had been read (``time.monotonic``)."""
        self.prompt_tokens = 0
        self.generations: list[Generated] = []

    def ended(
        self, level: int, request: web.BaseRequest, status: int | None, outcome: Outcome, reason: str
    ) -> Ended:
        """Return what the line of this request, which ends now, reports."""
        first: float | None = None
        tokens, finish = 0, ""
        for made in self.generations:
            if made.first_at is not None and (first is None or made.first_at < first):
                first = made.first_at
            tokens += made.output_tokens
            reached = made.finish_reason or "none"
            finish = f"{finish},{reached}" if finish else reached
        return Ended(
            time.time(),
            level,
            self.id,
            request.method,
            request.rel_url.raw_path,
            status,
            outcome,
            time.monotonic() - self.started,
            request.remote,
            self.prompt_tokens,
            tokens,
            None if first is None else first - self.started,
            finish,
            reason,
        )


class Ended(NamedTuple):
    """What the line of a request reports. Its text is made by the thread that writes it."""

    at: float
    """Seconds since 1970."""
    level: int
    id: str
    method: str
    path: str
    status: int | None
    outcome: Outcome
    jct: float
    """Seconds from the request's headers to the end of its answer."""
    client: str | None
    prompt_tokens: int
    output_tokens: int
    ttft: float | None
    """Seconds from the request's headers to its first token."""
    finish_reason: str
    reason: str

    def as_text(self) -> str:
        """Return the line as text."""
        line = (
            f"{utc(self.at)} {logging.getLevelName(self.level)} {self.id} {quoted(self.method)} "
            f"{quoted(self.path[:MAX_PATH])} {self.status or '-'} {self.outcome} jct_s={self.jct:.6f} "
            f"client={self.client or '-'}"
        )
        if self.prompt_tokens:
            ttft = "-" if self.ttft is None else f"{self.ttft:.6f}"
            line = (
                f"{line} prompt_tokens={self.prompt_tokens} output_tokens={self.output_tokens} ttft_s={ttft} "
                f"finish_reason={self.finish_reason or '-'}"
            )
        return f"{line} reason={quoted(self.reason[:MAX_REASON])}" if self.reason else line

    def as_json(self) -> str:
        """Return the line as a JSON object."""
        fields = {
            "time": utc(self.at),
            "level": logging.getLevelName(self.level),
            "message": "request",
            "request_id": self.id,
            "method": self.method,
            "path": self.path[:MAX_PATH],
            "status": self.status,
            "outcome": self.outcome,
            "jct_s": round(self.jct, 6),
            "client": self.client,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "ttft_s": None if self.ttft is None else round(self.ttft, 6),
            "finish_reason": self.finish_reason or None,
            "reason": self.reason[:MAX_REASON] or None,
        }
        return json.dumps(fields)


_current: ContextVar[Entry | None] = ContextVar("request", default=None)


def current_entry() -> Entry | None:
    """Return the request whose handler, or a task of it, calls this; None outside of requests."""
    return _current.get()


class RequestLog:
    """Writes one line for each request that has ended."""

    def __init__(self, instance: str) -> None:
        """``instance``: part of the ids of requests that have none."""
        self._prefix = f"req-{instance}-"
        self._numbers = count(1)
        self._second, self._lines = 0, 0
        self._only_counted: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, id: str | None) -> Entry:
        """Begin a request.

        ``id``: the one that the client gave it. If it is None or not valid, the request gets a new one.
        """
        if id is None or not _ID.fullmatch(id):
            id = f"{self._prefix}{next(self._numbers)}"
        entry = Entry(id, time.monotonic())
        _current.set(entry)
        return entry

    def end(
        self, entry: Entry, request: web.BaseRequest, status: int | None, outcome: Outcome, reason: str = ""
    ) -> None:
        """Write the request's line.

        Args:
            status: Its HTTP status; None: no answer was sent.
            reason: Why it did not finish.
        """
        output = Output.current
        if output is None:
            return
        if request.path in PROBES and status not in (401, 403, 500):  # 503 is an answer to a probe
            level = logging.DEBUG
        elif outcome == "finished":
            level = logging.INFO
        else:
            level = logging.ERROR if outcome == "failed" else logging.INFO
        if level < output.lowest:
            return
        if outcome != "finished" and not self._has_room(f"{status or 'no answer'} {outcome}"):
            return
        output.put(entry.ended(level, request, status, outcome, reason))

    def client_error(self, error: BaseException) -> None:
        """Report an error of a client below the level of requests, such as one that sent no HTTP.

        At debug it has a line. Otherwise it is counted, unless the client has left: the line of its request
        says so.
        """
        left = isinstance(error, ConnectionError)
        kind = "client left" if left else "malformed HTTP"
        if not log.isEnabledFor(logging.DEBUG):
            if not left:
                self._count(kind)
        elif self._has_room(kind):
            log.debug("%s: %s", kind, str(error)[:MAX_REASON])

    def _has_room(self, kind: str) -> bool:
        """Whether this second has room for one more line. If not, the line is counted under ``kind``."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= MAX_LINES_PER_SECOND:
            return True
        self._count(kind)
        return False

    def _count(self, kind: str) -> None:
        """Count what has no line, for the next summary."""
        self._only_counted[kind] += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SUMMARY_SECONDS, self.summarize)

    async def lifetime(self, app: web.Application) -> AsyncIterator[None]:
        """Count clients' errors that aiohttp reports while the app runs; at its end, report what was counted.

        For ``cleanup_ctx``.
        """
        theirs, filter = logging.getLogger("aiohttp.server"), ClientErrors(self)
        level = theirs.level
        theirs.addFilter(filter)
        theirs.setLevel(logging.DEBUG)  # it reports some of them at this level
        try:
            yield
        finally:
            theirs.removeFilter(filter)
            theirs.setLevel(level)
            self.summarize()

    def summarize(self) -> None:
        """Report what was only counted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._only_counted:
            kinds = ", ".join(f"{number:,} x {kind}" for kind, number in sorted(self._only_counted.items()))
            log.info("not logged one by one: %s", kinds)
            self._only_counted.clear()


class TextFormat(logging.Formatter):
    """``TIME LEVEL MESSAGE``, and a traceback indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{utc(record.created)} {record.levelname} {_escaped(record.getMessage())}"
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n  {_escaped(part)}" for part in trace.splitlines())
        return line


class JsonFormat(logging.Formatter):
    """One JSON object in one line: ``time``, ``level``, ``logger``, ``message``, perhaps ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": utc(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


class Output(logging.Handler):
    """Collects lines, and writes them to a stream in a thread of its own."""

    current: ClassVar[Output | None] = None
    """The one that ``logging_to`` has made."""

    def __init__(self, stream: TextIO, level: int, format: LogFormat) -> None:
        """``level``: of the lines of requests."""
        super().__init__()
        self.lowest = level
        """Level from which requests have a line."""
        self._text_of = Ended.as_json if format == "json" else Ended.as_text
        self.setFormatter(JsonFormat() if format == "json" else TextFormat())
        self._stream = stream
        self._lines: deque[str | Ended] = deque()
        self._dropped = 0
        self._awake, self._ending = False, False
        self._wake, self._hurry = threading.Event(), threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record and leave it to the thread."""
        self.put(self.format(record))
        if record.levelno >= logging.WARNING:
            self._hurry.set()

    def put(self, line: str | Ended) -> None:
        """Leave a line to the thread."""
        if len(self._lines) >= MAX_WAITING:
            self._dropped += 1
            return
        self._lines.append(line)
        if not self._awake:
            self._awake = True
            self._wake.set()

    def flush(self) -> None:
        """Write what waits, unless another thread has been writing for longer than ``PATIENCE_SECONDS``."""
        if self._writing.acquire(timeout=PATIENCE_SECONDS):
            try:
                self._write()
            finally:
                self._writing.release()

    def close(self) -> None:
        """Write what waits and end the thread; give up if nothing reads the stream."""
        self._ending = True
        self._hurry.set()
        self._wake.set()
        self._thread.join(PATIENCE_SECONDS)
        super().close()

    def _run(self) -> None:
        while not self._ending:
            self._wake.wait()
            self._hurry.wait(WRITE_SECONDS)
            self._wake.clear()
            self._hurry.clear()
            self._awake = False
            with self._writing:
                self._write()
        self.flush()

    def _write(self) -> None:
        waiting = [self._lines.popleft() for _ in range(len(self._lines))]
        lines = [line if isinstance(line, str) else self._text_of(line) for line in waiting]
        dropped, self._dropped = self._dropped, 0
        if dropped:
            lines.append(
                f"{utc(time.time())} WARNING {dropped:,} lines are missing: stderr was not read in time"
            )
        if lines:
            with contextlib.suppress(
                OSError, ValueError
            ):  # a full disk or a closed stderr must not end the server
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()


@contextlib.contextmanager
def logging_to(stream: TextIO, level: LogLevel, format: LogFormat) -> Iterator[None]:
    """Send the messages of all modules to ``stream`` until the block ends.

    ``level``: that of our own modules; others only give warnings and errors.
    """
    output = Output.current = Output(stream, _LEVELS[level], format)
    root, ours = logging.getLogger(), logging.getLogger("fgengine")
    before = ours.level
    ours.setLevel(_LEVELS[level])
    root.addHandler(output)
    try:
        yield
    finally:
        Output.current = None
        root.removeHandler(output)
        ours.setLevel(before)
        output.close()


class ClientErrors(logging.Filter):
    """Counts clients' errors, and takes them out of the log of aiohttp, which prints a traceback for each."""

    def __init__(self, requests: RequestLog) -> None:
        super().__init__()
        self._requests = requests

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is about something else."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, _CLIENTS_FAULT):
            return True
        self._requests.client_error(error)
        return False


def utc(seconds: float) -> str:
    """Return a time as ISO 8601 in UTC, with milliseconds.

    >>> utc(0.25)
    '1970-01-01T00:00:00.250Z'
    """
    whole = int(seconds)
    return "%s.%03dZ" % (_second(whole), (seconds - whole) * 1000)  # noqa: UP031 (faster, and it cuts off)


@functools.lru_cache(maxsize=8)
def _second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


@functools.lru_cache(maxsize=256)
def quoted(text: str) -> str:
    """Return a text that a client has chosen, so that it cannot look like another field or another line."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _escaped(text: str) -> str:
    """Return a message without characters that would begin another line or change a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
