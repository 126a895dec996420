"""Tests of the HTTP client against a server that writes given bytes."""

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
    """Answers request n, on any connection, with ``answers[n]``: bytes, or a function of the writer."""

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
    received: list[bytes] = []
    response = await connections.post(connections.request(b"{}"), received.append, timeout)
    return response.status, b"".join(received)


@pytest.mark.parametrize("answer", [SIZED, CHUNKED])
async def test_a_connection_is_reused_and_gets_a_valid_request(answer: bytes) -> None:
    async with serving(answer, answer, answer) as (server, connections):
        for _ in range(3):
            assert await ask(connections) == (200, b"hello")
        assert server.connections == 1
        assert len(server.requests) == 3
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /api/v1/x HTTP/1.1\r\nHost: 127.0.0.1:")
        assert body == b"{}"


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.slow
async def test_an_answer_may_arrive_in_any_pieces(seed: int) -> None:
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


async def test_pieces_are_passed_on_as_they_arrive() -> None:
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
async def test_a_connection_that_the_server_closes_is_not_reused(answer: bytes) -> None:
    async with serving(answer, SIZED) as (server, connections):
        assert await ask(connections) == await ask(connections) == (200, b"hello")
        assert server.connections == 2


async def test_an_answer_may_end_with_its_connection() -> None:
    def until_closed(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\nhello")
        writer.close()

    async with serving(until_closed) as (_, connections):
        assert await ask(connections) == (200, b"hello")


async def test_a_request_on_a_closed_connection_is_sent_on_a_new_one() -> None:
    """The server closes the connection when the next request arrives, so the request is sent again."""
    closed = lambda writer: writer.transport.abort()  # noqa: E731
    async with serving(SIZED, closed, SIZED) as (server, connections):
        assert await ask(connections) == (200, b"hello")
        assert await ask(connections) == (200, b"hello")
        assert server.connections == 2
        assert len(server.requests) == 3


async def test_a_request_is_not_sent_twice_if_the_server_closes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "STALE_SECONDS", 0.05)

    def later(writer: asyncio.StreamWriter) -> None:
        asyncio.get_running_loop().call_later(0.1, writer.transport.abort)

    async with serving(SIZED, later, SIZED) as (server, connections):
        await ask(connections)
        with pytest.raises(OSError, match=r"closed|reset"):
            await ask(connections)
        assert len(server.requests) == 2


async def test_a_request_is_not_sent_twice_if_a_new_connection_is_closed() -> None:
    closed = lambda writer: writer.transport.abort()  # noqa: E731
    async with serving(closed, SIZED) as (server, connections):
        with pytest.raises(OSError, match=r"closed|reset"):
            await ask(connections)
        assert len(server.requests) == 1


async def test_a_connection_can_be_reused_before_the_last_task_wakes_up() -> None:
    """A connection is free when the last byte of an answer arrives, before the waiting task runs."""
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


async def test_connections_that_were_idle_too_long_are_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(*[SIZED] * 4) as (server, connections):
        await asyncio.gather(ask(connections), ask(connections))
        assert server.connections == 2
        monkeypatch.setattr(http, "IDLE_SECONDS", 0.0)
        await ask(connections)
        assert server.connections == 3  # both old connections were closed


async def test_a_broken_answer_and_an_answer_that_is_not_http_are_errors() -> None:
    def cut(writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED[:-15])
        writer.close()

    async with serving(cut, b"SSH-2.0-OpenSSH\r\n\r\n") as (_, connections):
        with pytest.raises(StreamError, match="broke before the answer ended"):
            await ask(connections)
        with pytest.raises(StreamError, match="not HTTP"):
            await ask(connections)


async def test_the_body_of_an_error_is_stored_up_to_a_limit() -> None:
    body = b"x" * (http.ERROR_BODY_BYTES + 1000)
    error = b"HTTP/1.1 503 Busy\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with serving(error, SIZED) as (server, connections):
        received: list[bytes] = []
        response = await connections.post(connections.request(b"{}"), received.append, 5.0)
        assert (response.status, response.reason, received) == (503, "Busy", [])
        assert http.ERROR_BODY_BYTES <= len(response.body) <= len(body)
        assert await ask(connections) == (200, b"hello")
        assert server.connections == 1


async def test_early_hints_before_the_answer_are_ignored() -> None:
    async with serving(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + SIZED) as (_, connections):
        assert await ask(connections) == (200, b"hello")


async def test_an_exception_of_take_is_raised() -> None:
    async with serving(SIZED, SIZED) as (server, connections):
        with pytest.raises(ZeroDivisionError):
            await connections.post(connections.request(b"{}"), lambda piece: 1 // 0, 5.0)
        assert await ask(connections) == (200, b"hello")
        assert server.connections == 2  # the client did not wait for the rest of that answer


async def test_timeouts_and_cancellation_close_the_connection() -> None:
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
