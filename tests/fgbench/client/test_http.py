"""The client's HTTP, against a server that writes whatever bytes it is told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fgbench.client import http
from fgbench.client.http import Connections
from fgbench.client.streams import StreamError

HEAD = b"HTTP/1.1 200 OK\r\n"
SIZED = HEAD + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: t\r\n\r\n"


class Server:
    """Answers the n-th request on any connection with ``answers[n]``: bytes, or a function on the writer."""

    def __init__(self, *answers: bytes | Callable[[asyncio.StreamWriter], None]) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0)
                if callable(answer):
                    answer(writer)
                else:
                    writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def serving(
    *answers: bytes | Callable[[asyncio.StreamWriter], None],
) -> AsyncIterator[tuple[Server, Connections]]:
    server = Server(*answers)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        async with Connections(f"http://127.0.0.1:{port}/api", "/v1/x") as connections:
            yield server, connections
    finally:
        listener.close()


async def ask(connections: Connections, timeout: float = 5.0) -> tuple[int, bytes]:
    got: list[bytes] = []
    response = await connections.post(connections.request(b"{}"), got.append, timeout)
    return response.status, b"".join(got)


@pytest.mark.parametrize("answer", [SIZED, CHUNKED])
async def test_a_connection_is_used_again_and_what_is_sent_is_a_request(answer: bytes) -> None:
    async with serving(answer, answer, answer) as (server, connections):
        for _ in range(3):
            assert await ask(connections) == (200, b"hello")
        assert server.connections == 1
        assert len(server.requests) == 3
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /api/v1/x HTTP/1.1\r\nHost: 127.0.0.1:")
        assert body == b"{}"


@pytest.mark.parametrize("seed", range(10))
async def test_where_the_network_cuts_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)

    def pieces(writer: asyncio.StreamWriter) -> None:
        async def write() -> None:
            at = 0
            while at < len(CHUNKED):
                size = rng.randint(1, 9)
                writer.write(CHUNKED[at : at + size])
                at += size
                await asyncio.sleep(0.0005)

        task = asyncio.ensure_future(write())
        task.add_done_callback(lambda done: done.result())

    async with serving(pieces, pieces) as (_, connections):
        assert [await ask(connections) for _ in range(2)] == [(200, b"hello")] * 2


async def test_pieces_are_handed_on_as_they_arrive() -> None:
    def slowly(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED[:-20])
        asyncio.get_running_loop().call_later(0.1, writer.write, CHUNKED[-20:])

    loop = asyncio.get_running_loop()
    async with serving(slowly) as (_, connections):
        begun, first = loop.time(), []
        await connections.post(connections.request(b"{}"), lambda piece: first.append(loop.time()), 5.0)
    assert first[0] - begun < 0.08 < 0.1 <= loop.time() - begun


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
async def test_what_the_server_wants_closed_is_not_used_again(answer: bytes) -> None:
    async with serving(answer, SIZED) as (server, connections):
        assert await ask(connections) == await ask(connections) == (200, b"hello")
        assert server.connections == 2


async def test_an_answer_may_end_with_its_connection() -> None:
    def until_closed(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\nhello")
        writer.close()

    async with serving(until_closed) as (_, connections):
        assert await ask(connections) == (200, b"hello")


async def test_a_connection_closed_between_two_requests_costs_a_new_one() -> None:
    """The server closes just as the next request comes: nothing of it was seen, it is sent again."""
    closed = lambda writer: writer.transport.abort()  # noqa: E731
    async with serving(SIZED, closed, SIZED) as (server, connections):
        assert await ask(connections) == (200, b"hello")
        assert await ask(connections) == (200, b"hello")
        assert server.connections == 2
        assert len(server.requests) == 3


async def test_a_server_that_thought_about_it_is_not_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STALE_SECONDS", 0.05)

    def later(writer: asyncio.StreamWriter) -> None:
        asyncio.get_running_loop().call_later(0.1, writer.transport.abort)

    async with serving(SIZED, later, SIZED) as (server, connections):
        await ask(connections)
        with pytest.raises(OSError, match=r"closed|reset"):
            await ask(connections)
        assert len(server.requests) == 2


async def test_a_new_connection_that_is_closed_is_not_tried_again() -> None:
    closed = lambda writer: writer.transport.abort()  # noqa: E731
    async with serving(closed, SIZED) as (server, connections):
        with pytest.raises(OSError, match=r"closed|reset"):
            await ask(connections)
        assert len(server.requests) == 1


async def test_the_next_request_may_go_before_the_last_task_wakes_up() -> None:
    """A connection is free with the last byte of an answer, not only when whoever asked has run."""
    second: list[asyncio.Task[tuple[int, bytes]]] = []

    class Watched(list[Any]):
        def append(self, connection: Any) -> None:
            super().append(connection)
            if not second:
                second.append(asyncio.create_task(ask(connections)))

    async with serving(SIZED, SIZED) as (server, connections):
        connections._idle = Watched()
        assert await ask(connections) == (200, b"hello")
        assert await asyncio.wait_for(second[0], 5.0) == (200, b"hello")
        assert server.connections == 1


async def test_an_idle_connection_grows_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(*[SIZED] * 4) as (server, connections):
        await asyncio.gather(ask(connections), ask(connections))
        assert server.connections == 2
        monkeypatch.setattr(http, "IDLE_SECONDS", 0.0)
        await ask(connections)
        assert server.connections == 3  # both old ones were given up


async def test_a_broken_answer_and_what_is_no_http_are_told() -> None:
    def cut(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED[:-15])
        writer.close()

    async with serving(cut, b"SSH-2.0-OpenSSH\r\n\r\n") as (_, connections):
        with pytest.raises(StreamError, match="broke before the answer ended"):
            await ask(connections)
        with pytest.raises(StreamError, match="not HTTP"):
            await ask(connections)


async def test_an_error_is_kept_whole_up_to_a_limit() -> None:
    words = b"x" * (http.ERROR_BODY_BYTES + 1000)
    error = b"HTTP/1.1 503 Busy\r\nContent-Length: %d\r\n\r\n%b" % (len(words), words)
    async with serving(error, SIZED) as (server, connections):
        got: list[bytes] = []
        response = await connections.post(connections.request(b"{}"), got.append, 5.0)
        assert (response.status, response.reason, got) == (503, "Busy", [])
        assert http.ERROR_BODY_BYTES <= len(response.body) <= len(words)
        assert await ask(connections) == (200, b"hello")
        assert server.connections == 1


async def test_hints_before_the_answer_are_no_answer() -> None:
    async with serving(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + SIZED) as (_, connections):
        assert await ask(connections) == (200, b"hello")


async def test_a_failure_to_take_a_piece_is_the_callers() -> None:
    async with serving(SIZED, SIZED) as (server, connections):
        with pytest.raises(ZeroDivisionError):
            await connections.post(connections.request(b"{}"), lambda piece: 1 // 0, 5.0)
        assert await ask(connections) == (200, b"hello")
        assert server.connections == 2  # the rest of that answer was not waited for


async def test_timeouts_and_cancelling_close_the_connection() -> None:
    silent = lambda writer: None  # noqa: E731
    async with serving(silent, silent, SIZED) as (server, connections):
        with pytest.raises(asyncio.TimeoutError):
            await ask(connections, timeout=0.05)
        task = asyncio.create_task(ask(connections))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await ask(connections) == (200, b"hello")
        assert server.connections == 3
