"""The server's log: a line for each request, request ids, floods, clients that left, no forged lines."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import socket
import struct
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import pytest
from raw_http import Raw, post

from fgengine.server import logs
from fgengine.server.logs import MAX_LINES_PER_SECOND, Output, logging_to, quoted, utc

BODY = {"prompt": "abc", "max_tokens": 2}
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) .+")


class Log:
    """What the server has logged."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    def lines(self) -> list[str]:
        """Return the lines of all that was logged until now."""
        if Output.current is not None:
            Output.current.flush()
        return self.stream.getvalue().splitlines()

    def requests(self) -> list[dict[str, Any]]:
        """Return the JSON objects of requests."""
        return [fields for line in self.lines() if (fields := json.loads(line))["message"] == "request"]


@pytest.fixture
def log() -> Iterator[Log]:
    """The log at info, as text."""
    log = Log()
    with logging_to(log.stream, "info", "text"):
        yield log


@pytest.fixture
def json_log() -> Iterator[Log]:
    """The log at debug, as JSON."""
    log = Log()
    with logging_to(log.stream, "debug", "json"):
        yield log


async def _ended(served: Any) -> None:
    await served.until(lambda: served.service.counters.requests_in_flight == 0)


async def test_a_request_has_one_line_with_its_figures(served: Any, log: Log) -> None:
    served.engine.step_seconds = 0.02
    await served.post("/v1/completions", {"prompt": "abcde", "max_tokens": 3})
    (line,) = log.lines()
    assert LINE.fullmatch(line)
    assert " INFO req-" in line
    assert " POST /v1/completions 200 finished " in line
    assert " prompt_tokens=5 output_tokens=3 " in line
    assert line.endswith(" finish_reason=length")
    ttft, jct = (float(re.search(rf"{name}_s=([\d.]+)", line)[1]) for name in ("ttft", "jct"))  # type: ignore[index]
    assert 0.015 < ttft < jct - 0.03


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate"])
async def test_every_route_is_logged_as_json_too(served: Any, json_log: Log, path: str, stream: bool) -> None:
    prompt = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "abc"}
    body = {**prompt, "max_tokens": 4, "stream": stream}
    async with served.session.post(
        served.url + path, json=body, headers={"X-Request-Id": "mine"}
    ) as response:
        await response.read()
    await _ended(served)
    (fields,) = json_log.requests()
    assert fields["request_id"] == "mine"
    assert fields["level"] == "INFO"
    assert (fields["method"], fields["path"], fields["status"]) == ("POST", path, 200)
    assert (fields["outcome"], fields["finish_reason"], fields["reason"]) == ("finished", "length", None)
    assert fields["output_tokens"] == 4
    assert fields["prompt_tokens"] >= 3
    assert 0 < fields["ttft_s"] <= fields["jct_s"] < 60
    assert fields["client"] == "127.0.0.1"


async def test_the_outcome_of_every_end_is_logged(served: Any, json_log: Log, fake: Any) -> None:
    from fgengine.scheduling.refusal import QueueFull

    await served.post("/v1/completions", {"prompt": [97, fake.EOS], "max_tokens": 9})
    await served.post("/v1/completions", {**BODY, "n": 0})
    await served.get("/nothing")
    served.engine.refuse = QueueFull("the queue is full", 3.0)
    await served.post("/v1/completions", BODY)
    served.engine.refuse = None
    leaves = asyncio.create_task(served.post("/v1/completions", {"prompt": [97, fake.WAIT], "max_tokens": 9}))
    await served.until(lambda: any(r.num_generated for r in served.engine.requests.values()))
    leaves.cancel()
    await served.until(lambda: served.engine.aborted != [])
    await _ended(served)
    async with served.session.post(
        served.url + "/v1/completions", json={"prompt": [97, fake.WAIT], "max_tokens": 9, "stream": True}
    ) as response:
        breaks = asyncio.create_task(served.post("/v1/completions", {"prompt": [fake.BREAK]}))
        await response.read()
    await breaks
    await _ended(served)
    found = [(e["status"], e["outcome"], e["finish_reason"], e["level"]) for e in json_log.requests()]
    assert found[:5] == [
        (200, "finished", "stop", "INFO"),
        (400, "refused", None, "INFO"),
        (404, "refused", None, "INFO"),
        (429, "rejected", None, "INFO"),
        (None, "aborted", "none", "INFO"),
    ]
    assert sorted(found[5:]) == [(200, "failed", "none", "ERROR"), (503, "failed", "none", "ERROR")]
    reasons = [entry["reason"] for entry in json_log.requests()]
    assert reasons[0] is None
    assert "n" in reasons[1]
    assert "/nothing" in reasons[2]
    assert "the queue is full" in reasons[3]
    assert all("the fake broke" in reason for reason in reasons[5:])
    aborted = json_log.requests()[4]
    assert (aborted["prompt_tokens"], aborted["output_tokens"]) == (2, 1)


async def test_probes_are_logged_only_at_debug(served: Any, log: Log) -> None:
    for path in ("/health", "/stats", "/version"):
        await served.get(path)
    assert ["/version" in line for line in log.lines()] == [True]
    detailed = Log()
    with logging_to(detailed.stream, "debug", "text"):
        for path in ("/health", "/stats", "/version"):
            await served.get(path)
        assert [line.split()[1] for line in detailed.lines()] == ["DEBUG", "DEBUG", "INFO"]


async def test_warnings_only_means_no_lines_of_requests(served: Any, fake: Any) -> None:
    log = Log()
    with logging_to(log.stream, "warning", "text"):
        await served.post("/v1/completions", BODY)
        await served.post("/v1/completions", {})
        assert log.lines() == []
        await served.post("/v1/completions", {"prompt": [fake.BREAK]})
        (line,) = log.lines()
    assert " ERROR req-" in line
    assert " 503 failed " in line


@pytest.mark.parametrize("given", ["a", "x" * 128, "trace/7:{~}", '"quoted"'])
async def test_a_request_id_is_taken_and_returned(served: Any, json_log: Log, given: str) -> None:
    for body, status in ((BODY, 200), ({**BODY, "stream": True}, 200), ({}, 400)):
        async with served.session.post(
            served.url + "/v1/completions", json=body, headers={"x-request-id": given}
        ) as response:
            assert (response.status, response.headers["X-Request-Id"]) == (status, given)
            await response.read()
    await _ended(served)
    assert [entry["request_id"] for entry in json_log.requests()] == [given] * 3


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\tb", "\u00e9", None])
async def test_a_request_without_a_valid_id_gets_a_new_one(served: Any, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-Id": given}
    ids = set()
    for path, body in (
        ("/v1/completions", BODY),
        ("/generate", {**BODY, "stream": True}),
        ("/x", {}),
        ("/v1/completions", {}),
    ):
        async with served.session.post(served.url + path, json=body, headers=headers) as response:
            ids.add(response.headers["X-Request-Id"])
            await response.read()
    async with served.session.get(served.url + "/health") as response:
        ids.add(response.headers["X-Request-Id"])
    assert len(ids) == 5
    assert all(re.fullmatch(r"req-[0-9a-f]{8}-\d+", id) for id in ids)


async def test_refused_access_has_an_id_and_a_line(served: Any, json_log: Log) -> None:
    async with served.session.post(
        served.url + "/v1/completions", data="{}", headers={"X-Request-Id": "me"}
    ) as response:
        assert (response.status, response.headers["X-Request-Id"]) == (415, "me")
    (entry,) = json_log.requests()
    assert (entry["status"], entry["outcome"]) == (415, "refused")


@pytest.fixture
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the clock of the log, so that all lines belong to the same second."""
    clock = types.SimpleNamespace(monotonic=lambda: 5.0, time=time.time, strftime=time.strftime)
    clock.gmtime = time.gmtime
    monkeypatch.setattr(logs, "time", clock)


def counted(lines: list[str], kind: str) -> int:
    """Return the sum of the numbers that the log gives for a kind of lines."""
    numbers = [n for line in lines for n in re.findall(rf"([\d,]+) x {kind}", line)]
    return sum(int(number.replace(",", "")) for number in numbers)


@pytest.mark.usefixtures("one_second")
async def test_a_flood_of_refused_requests_is_counted(served: Any, log: Log) -> None:
    served.service.counters.requests_refused = 0
    await asyncio.gather(*(served.post("/v1/completions", {"n": 3}) for _ in range(400)))
    await asyncio.gather(*(served.get("/nothing") for _ in range(100)))
    await asyncio.sleep(logs.SUMMARY_SECONDS + 0.1)
    lines = log.lines()
    own = [line for line in lines if " refused " in line and "reason=" in line]
    assert len(own) == MAX_LINES_PER_SECOND
    assert counted(lines, "400 refused") == 400 - MAX_LINES_PER_SECOND
    assert counted(lines, "404 refused") == 100
    assert served.service.counters.requests_refused == 400


async def test_requests_that_finish_have_their_lines_also_in_a_flood(served: Any, log: Log) -> None:
    await asyncio.gather(*(served.post("/v1/completions", {}) for _ in range(2 * MAX_LINES_PER_SECOND)))
    await served.post("/v1/completions", BODY)
    assert " finished " in log.lines()[-1]


async def test_a_flood_that_is_not_http_is_counted_without_tracebacks(served: Any, log: Log) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    garbage = (
        b"GET / HTTP/9.9 x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nA B: c\r\n\r\n",
    )

    async def send(data: bytes) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        assert (await reader.read()).startswith(b"HTTP/1.")
        writer.close()

    for _ in range(20):
        await asyncio.gather(*(send(data) for data in garbage))
    await asyncio.sleep(logs.SUMMARY_SECONDS + 0.1)
    text = "\n".join(log.lines())
    assert "Traceback" not in text
    assert re.search(r"INFO not logged one by one: [\d,]+ x malformed HTTP", text)
    assert counted(log.lines(), "malformed HTTP") == 60
    assert all(" x malformed HTTP" in line for line in log.lines())
    assert (await served.get("/health"))[0] == 200


async def test_one_request_that_is_not_http_is_counted_too(served: Any, log: Log) -> None:
    raw = await Raw.to(served.url)
    raw.send(b"nonsense\r\n\r\n")
    assert (await raw.answer())[0] == 400
    raw.leave()
    await served.until(lambda: counted(log.lines(), "malformed HTTP") == 1)


async def test_an_unsupported_version_is_the_clients_mistake(served: Any, json_log: Log) -> None:
    raw = await Raw.to(served.url)
    raw.send(post("/v1/completions", BODY).replace(b"HTTP/1.1", b"HTTP/2.0"))
    status, _, _ = await raw.answer()
    assert status == 505
    raw.leave()
    (entry,) = json_log.requests()
    assert (entry["status"], entry["outcome"], entry["level"]) == (505, "refused", "INFO")
    counters = served.service.counters
    assert (counters.requests_refused, counters.requests_failed) == (1, 0)


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": "abc", "n": 4}, 3),
        ({"prompt": "abc", "n": 2, "best_of": 3}, 3),
        ({"prompt": ["abc", "abc"], "n": 2}, 6),
        ({"prompt": [[1, 2], [1, 2], [3]]}, 5),
    ],
)
async def test_a_prompt_counts_once(served: Any, json_log: Log, body: dict[str, Any], tokens: int) -> None:
    status, answer = await served.post("/v1/completions", {**body, "max_tokens": 2})
    assert status == 200
    (entry,) = json_log.requests()
    assert entry["prompt_tokens"] == answer["usage"]["prompt_tokens"] == tokens


async def test_clients_that_leave_during_a_stream_leave_no_traceback(served: Any, log: Log) -> None:
    """They reset their connections, so that writes fail before the server notices."""
    served.engine.step_seconds = 0.0
    host, port = served.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "abc", "max_tokens": 4000, "stream": True})
    message = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()

    async def leave() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(message)
        await reader.read(300)
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    await asyncio.gather(*(leave() for _ in range(40)))
    await _ended(served)
    assert served.service.counters.requests_aborted == 40
    await asyncio.sleep(logs.SUMMARY_SECONDS + 0.1)
    lines = log.lines()
    assert all(LINE.fullmatch(line) for line in lines), lines
    own = sum(" aborted " in line and "prompt_tokens=3" in line for line in lines)
    counted = sum(int(n) for line in lines for n in re.findall(r"(\d+) x no answer aborted", line))
    assert own + counted == 40


async def test_a_failed_handler_keeps_its_traceback_and_names_the_request(
    served: Any, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("first\n2026-01-01T00:00:00.000Z INFO forged")

    monkeypatch.setattr(served.service, "stats", broken)
    async with served.session.get(served.url + "/stats", headers={"X-Request-Id": "r-7"}) as response:
        assert response.status == 500
        assert "for request r-7" in (await response.json())["error"]["message"]
    lines = log.lines()
    assert lines[0].endswith("ERROR GET /stats failed for request r-7")
    assert any('raise RuntimeError("first' in line for line in lines)
    assert [line for line in lines if not line.startswith("  ")] == [lines[0], lines[-1]]
    assert " 500 failed " in lines[-1]


FORGED = (
    "GET /a%0a2026-01-01T00:00:00.000Z%20INFO%20forged HTTP/1.1\r\nHost: localhost",
    "GET /a\x1b[2J HTTP/1.1\r\nHost: localhost",
    "GET /\xe2\x80\xa8x HTTP/1.1\r\nHost: localhost",
    "GET /\xffx HTTP/1.1\r\nHost: localhost",
    "GET /v1/models/%0aforged%1b[2J HTTP/1.1\r\nHost: localhost",
    "GET / HTTP/1.1\r\nHost: \x85forged",
)


@pytest.mark.parametrize("format", ["text", "json"])
async def test_no_client_can_forge_a_line(served: Any, format: Any) -> None:
    log = Log()
    host, port = served.url.removeprefix("http://").split(":")
    with logging_to(log.stream, "debug", format):
        for head in FORGED:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode("latin-1"))
            await reader.read()
            writer.close()
        await served.post("/v1/completions", {"prompt": "a", "model": "x\n2026 INFO forged\u2028\x1b[2J"})
        await served.post("/v1/completions", {"prompt": "a", "a\nforged": 1})
        lines = log.lines()
    text = "\n".join(lines)
    assert len(lines) >= len(FORGED) + 2
    assert text.isascii()
    assert "\x1b" not in text
    for line in lines:
        if format == "json":
            json.loads(line)
        else:
            assert LINE.fullmatch(line)
            assert not line.split()[2].startswith("forged")


def test_a_value_with_spaces_or_quotes_is_quoted() -> None:
    assert [quoted(text) for text in ("/v1", "a b", 'a"b', "a\n", "")] == [
        "/v1",
        '"a b"',
        '"a\\"b"',
        '"a\\n"',
        '""',
    ]


def test_a_time_has_milliseconds() -> None:
    assert utc(1_800_000_000.9996) == "2027-01-15T08:00:00.999Z"


def test_nothing_is_lost_at_the_end() -> None:
    log = Log()
    with logging_to(log.stream, "info", "text"):
        for number in range(1000):
            logging.getLogger("fgengine.server").info("line %d", number)
    assert [int(line.split()[-1]) for line in log.lines()] == list(range(1000))


def test_lines_of_many_threads_are_all_written() -> None:
    log = Log()
    with logging_to(log.stream, "info", "text"):

        def write() -> None:
            for _ in range(500):
                logging.getLogger("fgengine.server").info("x")
                logging.getLogger("fgengine.server").warning("y")

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(log.lines()) == 4000


class Blocked(io.StringIO):
    """A stream that is not read: writing waits."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()

    def write(self, text: str) -> int:
        self.open.wait(20)
        return super().write(text)


async def test_a_stderr_that_is_not_read_holds_nothing_up(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING", 50)
    monkeypatch.setattr(logs, "PATIENCE_SECONDS", 0.2)
    stream = Blocked()
    with logging_to(stream, "info", "text"):
        began = time.monotonic()
        for _ in range(3):
            await asyncio.gather(*(served.post("/v1/completions", BODY) for _ in range(40)))
            await asyncio.sleep(2 * logs.WRITE_SECONDS)
        assert time.monotonic() - began < 10
        stream.open.set()
        await asyncio.sleep(2 * logs.WRITE_SECONDS)
    text = stream.getvalue()
    missing = re.search(r"WARNING (\d+) lines are missing", text)
    assert missing is not None
    assert text.count(" finished ") + int(missing[1]) == 120
    with logging_to(Blocked(), "info", "text"):
        logging.getLogger("fgengine.server").error("x")
        began = time.monotonic()
    assert time.monotonic() - began < 5  # the end does not wait for the stream either


def test_a_full_disk_does_not_end_the_server() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with logging_to(Full(), "info", "text"):
        logging.getLogger("fgengine.server").error("x")
        assert Output.current is not None
        Output.current.flush()
