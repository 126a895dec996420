"""Limits of all connections together: who is late, who has to go, what bodies may hold."""

from __future__ import annotations

import asyncio
import resource
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from raw_http import Raw, half_body, post

from fgengine.server.connections import (
    EXTRA_CONNECTIONS,
    SMALL_BODY,
    Connections,
    Phase,
    Timeouts,
)
from fgengine.server.file_limit import DEFAULT_CONNECTIONS, connection_limit, raise_file_limit
from fgengine.server.options import ServerOptions
from fgengine.server.routes import HEALTH as HEALTH_PATHS

HALF_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
SHORT = Timeouts(head=0.3, body=0.3, idle=0.3, write=0.3, extra=0.3, leaving=0.3)

Connect = Callable[..., Awaitable[Raw]]


@pytest.fixture
async def connect(served: Any) -> AsyncIterator[Connect]:
    opened: list[Raw] = []

    async def make(data: bytes = b"") -> Raw:
        raw = await Raw.to(served.url)
        opened.append(raw)
        raw.send(data)
        await asyncio.sleep(0.01)
        return raw

    yield make
    for raw in opened:
        raw.leave()


@pytest.mark.parametrize("sent", [b"", b"POST", HALF_HEAD])
async def test_a_head_that_is_not_complete_in_time_is_a_408(
    served: Any, connect: Connect, sent: bytes
) -> None:
    served.connections.timeouts = SHORT
    raw = await connect(sent)
    status, headers, body = await raw.answer()
    assert (status, headers["connection"]) == (408, "close")
    assert body["error"]["type"] == "invalid_request_error"
    assert "0.3 s" in body["error"]["message"]
    assert await raw.closed()
    assert served.connections.counters.connections_timed_out == 1


async def test_a_head_that_comes_byte_by_byte_is_late_too(served: Any, connect: Connect) -> None:
    served.connections.timeouts = SHORT
    raw = await connect(HALF_HEAD)

    async def drip() -> None:
        while True:
            raw.send(b"X-Header: value\r\n")
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    assert (await raw.answer())[0] == 408
    dripping.cancel()


async def test_the_second_head_of_a_connection_has_a_timeout_too(served: Any, connect: Connect) -> None:
    served.connections.timeouts = Timeouts(head=0.3)
    raw = await connect(HEALTH)
    assert (await raw.answer())[0] == 200
    raw.send(HALF_HEAD)
    assert (await raw.answer())[0] == 408


async def test_a_body_that_stops_is_a_408(served: Any, connect: Connect) -> None:
    served.connections.timeouts = SHORT
    raw = await connect(half_body())
    status, _, body = await raw.answer()
    assert status == 408
    assert body["error"]["type"] == "invalid_request_error"
    assert await raw.closed()
    assert served.service.counters.requests_refused == 1
    assert served.service.counters.requests_in_flight == 0


async def test_a_body_that_grows_steadily_may_take_long(served: Any, connect: Connect) -> None:
    served.connections.timeouts = Timeouts(body=0.5)
    request = post("/v1/completions", {"prompt": "abc", "max_tokens": 3}, padding=20_000)
    raw = await connect()
    for start in range(0, len(request), 2000):
        raw.send(request[start : start + 2000])
        await asyncio.sleep(0.15)
    assert (await raw.answer())[0] == 200


async def test_a_body_of_a_few_bytes_a_second_is_late(served: Any, connect: Connect) -> None:
    served.connections.timeouts = Timeouts(body=0.5)
    raw = await connect(half_body(100_000))

    async def drip() -> None:
        while True:
            raw.send(b"x")
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    assert (await raw.answer())[0] == 408
    dripping.cancel()


async def test_a_body_behind_a_refused_upgrade_has_a_timeout_too(served: Any, connect: Connect) -> None:
    """aiohttp parses what follows such a request in another place than all else."""
    served.connections.timeouts = Timeouts(body=0.3)
    upgrade = HEALTH.replace(b"Host", b"Upgrade: websocket\r\nConnection: Upgrade\r\nHost")
    raw = await connect(upgrade + half_body())
    assert (await raw.answer())[0] == 200
    assert (await raw.answer())[0] == 408


async def test_an_idle_connection_is_closed_without_a_word(served: Any, connect: Connect) -> None:
    served.connections.timeouts = Timeouts(idle=0.3)
    raw = await connect(HEALTH)
    await raw.answer()
    assert await raw.closed()
    assert served.connections.counters.connections_timed_out == 0


async def test_a_request_that_waits_for_its_answer_is_never_late(
    served: Any, connect: Connect, fake: Any
) -> None:
    served.connections.timeouts = SHORT
    served.engine.step_seconds = 0.2
    raw = await connect(post("/v1/completions", {"prompt": "abc", "max_tokens": 6}))
    assert (await raw.answer())[0] == 200


async def test_idle_connections_make_room_first(served: Any, connect: Connect) -> None:
    served.connections.limit = 3
    idle = await connect(HEALTH)
    await idle.answer()
    head, body = await connect(HALF_HEAD), await connect(half_body())
    new = await connect(HEALTH)
    assert (await new.answer())[0] == 200
    assert await idle.closed()
    assert not head.reader.at_eof()
    assert not body.reader.at_eof()


async def test_then_the_oldest_half_sent_head_makes_room(served: Any, connect: Connect) -> None:
    served.connections.limit = 3
    heads = [await connect(HALF_HEAD) for _ in range(3)]
    new = await connect(post("/v1/completions", {"prompt": "abc"}))
    status, headers, body = await heads[0].answer()
    assert (status, headers["retry-after"], body["error"]["type"]) == (503, "1", "service_unavailable")
    assert (await new.answer())[0] == 200
    heads[1].send(b"Content-Length: 0\r\n\r\n")
    assert (await heads[1].answer())[0] == 400


async def test_then_a_stalled_body_makes_room(
    served: Any, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.connections.limit = 2
    monkeypatch.setattr("fgengine.server.connections.STALLED_SECONDS", 0.0)
    bodies = [await connect(half_body()) for _ in range(2)]
    new = await connect(post("/v1/completions", {"prompt": "abc"}))
    assert (await bodies[0].answer())[0] == 503
    assert (await new.answer())[0] == 200
    assert not bodies[1].reader.at_eof()


async def test_complete_requests_are_never_dropped_and_health_is_still_answered(
    served: Any, connect: Connect, fake: Any
) -> None:
    served.connections.limit = 2
    waiting = [
        await connect(post("/v1/completions", {"prompt": [97, fake.WAIT], "max_tokens": 9})) for _ in range(2)
    ]
    for _ in range(3):
        refused = await connect(post("/v1/completions", {"prompt": "abc"}))
        status, headers, body = await refused.answer()
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert body["error"]["type"] == "service_unavailable"
        for path in HEALTH_PATHS:
            health = await connect(HEALTH.replace(b"/health", path.encode()))
            status, headers, _ = await health.answer()
            assert (path, status, headers["connection"]) == (path, 200, "close")
            assert await health.closed()
    assert not any(raw.reader.at_eof() for raw in waiting)
    assert len(served.engine.requests) == 2
    assert served.connections.counters.connections_refused == 3
    assert served.service.counters.requests_rejected == 3
    assert served.service.counters.requests_failed == 0


async def test_half_sent_heads_above_the_limit_do_not_keep_health_away(
    served: Any, connect: Connect, fake: Any
) -> None:
    served.connections.limit = 1
    await connect(post("/v1/completions", {"prompt": [97, fake.WAIT], "max_tokens": 9}))
    for _ in range(3 * EXTRA_CONNECTIONS):
        await connect(HALF_HEAD)
    assert (await (await connect(HEALTH)).answer())[0] == 200
    assert served.connections.counters.connections_open <= 2 * EXTRA_CONNECTIONS


async def test_connections_wait_when_no_socket_may_be_opened_and_are_served_later(
    served: Any, connect: Connect, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgengine.server.connections.CLOSING_CONNECTIONS", 2)
    served.connections.timeouts = Timeouts(extra=0.5)
    served.connections.limit = 1
    await connect(post("/v1/completions", {"prompt": [97, fake.WAIT], "max_tokens": 9}))
    silent = [await connect() for _ in range(2)]
    waiting = await connect(HEALTH)
    assert served.connections.counters.connections_open == 3
    assert (await silent[0].answer())[0] == 408
    assert (await waiting.answer())[0] == 200


async def test_a_large_refused_request_reads_its_answer(served: Any, connect: Connect, fake: Any) -> None:
    """Closing with unread data would reset the connection, and the client would lose the answer."""
    served.connections.limit = 1
    await connect(post("/v1/completions", {"prompt": [97, fake.WAIT], "max_tokens": 9}))
    refused = await connect(half_body(4_000_000, sent=b"x" * 100_000))
    refused.send(b"x" * 3_900_000)
    await asyncio.sleep(0.1)
    assert (await refused.answer())[0] == 503


async def test_unfinished_bodies_share_a_budget(served: Any, connect: Connect) -> None:
    served.connections.body_budget = 600_000
    size = 200_000
    bodies = [await connect(half_body(2 * size, sent=b"x" * size)) for _ in range(5)]
    await served.until(lambda: served.connections.counters.connections_refused >= 2)
    statuses = [(await raw.answer())[0] for raw in bodies[3:]]
    assert statuses == [503, 503]
    assert served.service.counters.requests_rejected == 2
    assert served.service.counters.requests_failed == 0
    small = await connect(post("/v1/completions", {"prompt": "abc"}, padding=SMALL_BODY - 1000))
    assert (await small.answer())[0] == 200
    bodies[0].leave()
    large = await connect(post("/v1/completions", {"prompt": "abc"}, padding=size))
    assert (await large.answer())[0] == 200


async def test_the_budget_counts_what_a_compressed_body_becomes(served: Any, connect: Connect) -> None:
    served.connections.body_budget = 500_000
    packed = zlib.compress(b"x" * 5_000_000)
    raw = await connect(half_body(99_999, sent=packed).replace(b"Host", b"Content-Encoding: deflate\r\nHost"))
    assert (await raw.answer())[0] == 503


async def test_a_stalled_large_body_makes_room_for_another(
    served: Any, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgengine.server.connections.STALLED_SECONDS", 0.0)
    served.connections.body_budget = 300_000
    stalled = await connect(half_body(400_000, sent=b"x" * 200_000))
    await asyncio.sleep(0.1)
    large = await connect(post("/v1/completions", {"prompt": "abc"}, padding=200_000))
    assert (await large.answer())[0] == 200
    assert (await stalled.answer())[0] == 503


async def test_the_counters_are_in_the_stats(served: Any, connect: Connect) -> None:
    await connect(b"nonsense\r\n\r\n")
    _, stats = await served.get("/stats")
    assert stats["malformed_requests"] == 1
    assert stats["connections_open"] >= 1
    assert stats["connections_refused"] == stats["connections_timed_out"] == 0


class Still:
    """A connection that only records what is done to it."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.left = 1000

    def refuse_head(self, refusal: Exception) -> None:
        self.done.append("head")

    def refuse_body(self, refusal: Exception) -> None:
        self.done.append("body")

    def drop(self) -> None:
        self.done.append("drop")

    def has_unread(self) -> bool:
        return False

    def unsent(self) -> int:
        return self.left

    def all_sent(self) -> None:
        self.done.append("sent")


async def test_a_reader_that_makes_progress_is_not_late_and_one_that_stops_is() -> None:
    connections = Connections(10, Timeouts(write=0.6))
    slow, stopped = Still(), Still()
    for connection in (slow, stopped):
        connections.open(connection)
        connections.enter(connection, Phase.ANSWER)
        connections.watch_writing(connection)
    for _ in range(8):
        await asyncio.sleep(0.2)
        slow.left -= 1
    assert slow.done == []
    assert stopped.done == ["drop"]
    assert connections.counters.connections_timed_out == 1
    slow.left = 0
    await asyncio.sleep(0.4)
    assert slow.done == ["sent"]
    connections.stop()


async def test_every_place_is_given_back() -> None:
    connections = Connections(2)
    for _ in range(1000):
        connection = Still()
        connections.open(connection)
        connections.enter(connection, Phase.BODY)
        connections.hold(connection, 10_000)
        connections.closed(connection)
        connections.closed(connection)
    assert connections.counters.connections_open == 0
    assert connections.open(Still()) is Phase.HEAD
    assert not connections.full
    connections.stop()


def test_the_limit_follows_the_open_files() -> None:
    assert connection_limit(None, 1024) == 832
    assert connection_limit(None, 2**20) == DEFAULT_CONNECTIONS
    assert connection_limit(50_000, 2**20) == 50_000
    with pytest.raises(
        ValueError, match="--max-connections 900 needs 1092 open files, but the limit is 1024"
    ):
        connection_limit(900, 1024)
    with pytest.raises(ValueError, match="the server needs 193 open files, but the limit is 100"):
        connection_limit(None, 100)


def test_the_soft_limit_of_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert raise_file_limit() > 256 or hard <= 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_key_without_a_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="--ssl-certfile"):
        ServerOptions(ssl_keyfile="key.pem")
