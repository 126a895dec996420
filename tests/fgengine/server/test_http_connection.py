"""One connection: half-closed clients, clients that leave, slow readers, and errors of HTTP itself."""

from __future__ import annotations

import asyncio
import errno
import inspect
import json
import logging
import socket
import struct
import zlib
from typing import Any

import pytest
from aiohttp import web
from raw_http import Raw, half_body, post

from fgengine.server.connections import Timeouts
from fgengine.server.http_connection import HttpConnection

SHORT = {"prompt": "abc", "max_tokens": 5}


def test_the_parts_of_aiohttp_that_are_used_exist() -> None:
    """HttpConnection overrides these. If a new aiohttp has changed one, adapt HttpConnection to it."""
    own = web.RequestHandler
    parameters = {
        "data_received": ["self", "data"],
        "eof_received": ["self"],
        "connection_made": ["self", "transport"],
        "connection_lost": ["self", "exc"],
        "pause_writing": ["self"],
        "close": ["self"],
        "handle_error": ["self", "request", "status", "exc", "message"],
        "finish_response": ["self", "request", "resp", "start_time"],
        "log_exception": ["self", "args", "kw"],
    }
    for name, expected in parameters.items():
        assert list(inspect.signature(getattr(own, name)).parameters) == expected, name
        assert name in vars(HttpConnection), name
    assert {"_messages", "_request_count"} <= set(own.__slots__)
    source = inspect.getsource(own)
    for call in ("self.handle_error(", "self.finish_response(", "self.log_exception(", "_request_count += 1"):
        assert call in source, call


@pytest.mark.parametrize("tokens", [5, 400])
async def test_a_half_closed_client_gets_its_answer(served: Any, tokens: int) -> None:
    served.engine.step_seconds = 0.002
    raw = await Raw.to(served.url)
    raw.send(post("/v1/completions", {"prompt": "abc", "max_tokens": tokens}))
    raw.end()
    status, _, body = await raw.answer()
    assert status == 200
    assert body["usage"]["completion_tokens"] == tokens
    assert await raw.closed()


async def test_a_half_closed_client_gets_its_whole_stream(served: Any) -> None:
    served.engine.step_seconds = 0.002
    raw = await Raw.to(served.url)
    raw.send(post("/v1/completions", {"prompt": "abc", "max_tokens": 200, "stream": True}))
    raw.end()
    answer = await raw.everything()
    assert answer.count(b"data: ") == 201
    assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_a_half_closed_client_gets_all_pipelined_answers(served: Any) -> None:
    raw = await Raw.to(served.url)
    raw.send(post("/v1/completions", SHORT) + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    raw.end()
    assert [(await raw.answer())[0], (await raw.answer())[0]] == [200, 200]
    assert await raw.closed()


async def test_a_half_closed_client_of_http_1_0_gets_what_costs_nothing(served: Any) -> None:
    raw = await Raw.to(served.url)
    raw.send(b"GET /health HTTP/1.0\r\n\r\n")
    raw.end()
    assert b'"ready"' in await raw.everything()


@pytest.mark.parametrize("sent", [b"", b"GET /he", half_body()])
async def test_a_fin_before_the_end_of_a_request_closes_the_connection(served: Any, sent: bytes) -> None:
    raw = await Raw.to(served.url)
    raw.send(sent)
    raw.end()
    assert await raw.everything() == b""
    await served.until(lambda: served.connections.counters.connections_open == 0)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_while_nothing_is_sent_is_noticed(
    served: Any, fake: Any, stream: bool, reset: bool
) -> None:
    """The prompt lets the engine stop after one token, so that the server has nothing to send."""
    raw = await Raw.to(served.url)
    raw.send(post("/v1/completions", {"prompt": [97, fake.WAIT], "max_tokens": 99, "stream": stream}))
    if stream:
        await raw.reader.readuntil(b"\n\n")
    await served.until(lambda: any(r.num_generated for r in served.engine.requests.values()))
    if reset:
        linger = struct.pack("ii", 1, 0)
        raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    raw.leave()
    await asyncio.wait_for(served.until(lambda: served.engine.aborted == ["cmpl-0"]), 3)
    await served.until(lambda: served.service.counters.requests_in_flight == 0)
    assert served.service.counters.requests_aborted == 1


async def test_a_half_closed_client_that_leaves_later_is_noticed(
    served: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgengine.server.http_connection.PROBE_SECONDS", 0.2)
    raw = await Raw.to(served.url)
    raw.send(post("/v1/completions", {"prompt": [97, fake.WAIT], "max_tokens": 99}))
    raw.end()
    await asyncio.sleep(0.5)
    assert served.engine.aborted == []
    raw.leave()
    await asyncio.wait_for(served.until(lambda: served.engine.aborted == ["cmpl-0"]), 3)


async def test_probes_leave_a_waiting_stream_valid(
    served: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fgengine.server.http_connection.PROBE_SECONDS", 0.1)
    for path in ("/v1/completions", "/generate"):
        served.engine.step_seconds = 0.25
        raw = await Raw.to(served.url)
        raw.send(post(path, {"prompt": "abcd", "max_tokens": 4, "stream": True}))
        raw.end()
        _, _, chunks = (await raw.everything()).partition(b"\r\n\r\n")
        text = _unchunked(chunks)
        assert b"\n" in text
        end = b"\n\n" if path != "/generate" else b"\0"
        messages = [one.strip() for one in text.split(end) if one.strip()]
        bodies = [json.loads(one.removeprefix(b"data: ")) for one in messages if one != b"data: [DONE]"]
        assert len(bodies) == 4


def _unchunked(data: bytes) -> bytes:
    text = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        text += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return text


async def test_a_client_that_does_not_read_is_disconnected_and_its_request_aborted(served: Any) -> None:
    served.connections.timeouts = Timeouts(write=0.5)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)
    host, port = served.url.removeprefix("http://").split(":")
    await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
    body = {"prompt": "a", "max_tokens": 4000, "stream": True}  # each message has all the text so far
    await asyncio.get_running_loop().sock_sendall(connection, post("/generate", body))
    await asyncio.wait_for(served.until(lambda: served.engine.aborted == ["cmpl-0"]), 20)
    assert served.connections.counters.connections_timed_out == 1
    await served.until(lambda: served.connections.counters.connections_open == 0)
    connection.close()


async def test_a_slow_reader_gets_everything(served: Any) -> None:
    served.connections.timeouts = Timeouts(write=1.0)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = served.url.removeprefix("http://").split(":")
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (host, int(port)))
    await loop.sock_sendall(
        connection, post("/generate", {"prompt": "a" * 2000, "max_tokens": 1500, "stream": True})
    )
    got = b""
    for _ in range(12):
        got += await loop.sock_recv(connection, 8192)
        await asyncio.sleep(0.25)
    while not got.endswith(b"0\r\n\r\n"):
        piece = await loop.sock_recv(connection, 2**20)
        assert piece
        got += piece
    assert served.connections.counters.connections_timed_out == 0
    connection.close()


HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (b"nonsense\r\n\r\n", 400, "not valid HTTP"),
        (b"GET /health\r\n\r\n", 505, "HTTP/0.9"),
        (b"GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n", (400, 505), ""),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ""),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "http://"),
        (HEAD + b"X: " + b"x" * 20_000 + b"\r\n\r\n", 431, "a header has more than"),
        (HEAD + b"X: y\r\n" * 500 + b"\r\n", 431, "too many headers"),
        (
            b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
            414,
            "the address of the request",
        ),
        (HEAD + b"Expect: a miracle\r\n\r\n", 417, "a miracle"),
        (CHUNKED + b"not-hex\r\n{}\r\n", 400, "not valid HTTP"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, ""),
        (HEAD + b"Content-Encoding: br\r\nContent-Length: 1\r\n\r\nx", (400, 415), ""),
        (post("/v1/completions", SHORT).replace(b"Host", b"Content-Encoding: x-lz\r\nHost"), 415, "x-lz"),
        (post("/v1/completions", SHORT).replace(b"Host", b"Content-Encoding: gzip\r\nHost"), 400, "encoding"),
        (b"DELETE /health HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, "DELETE"),
        (b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "/nothing"),
    ],
)
async def test_errors_of_http_have_the_form_of_openai(
    served: Any, sent: bytes, status: Any, message: str, capfd: Any, caplog: Any
) -> None:
    raw = await Raw.to(served.url)
    raw.send(sent)
    got, headers, body = await raw.answer()
    assert got in (status if isinstance(status, tuple) else (status,))
    assert headers["content-type"].startswith("application/json")
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    assert message.lower() in body["error"]["message"].lower()
    if got == 405:
        assert headers["allow"] == "GET,HEAD"
    raw.leave()
    await served.until(lambda: served.connections.counters.connections_open == 0)
    assert caplog.records == []
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"2\r\n{ \r\n", b"not-hex\r\n{}\r\n"),
        (b"2\r\n{ \r\n", b"2\r\n{}XX"),
        (
            b"2\r\n{ ",
            b"\r\nz\r\n",
        ),  # the end of the first chunk has just woken the reader
    ],
)
async def test_a_bad_chunk_after_the_head_is_a_400(served: Any, first: bytes, second: bytes) -> None:
    raw = await Raw.to(served.url)
    raw.send(CHUNKED + first)
    await asyncio.sleep(0.05)
    raw.send(second)
    status, _, body = await asyncio.wait_for(raw.answer(), 5)
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    raw.leave()


async def test_an_error_in_a_packed_body_is_a_400_even_just_after_a_chunk(served: Any) -> None:
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(b" " * 100) + packer.flush(zlib.Z_SYNC_FLUSH)
    raw = await Raw.to(served.url)
    raw.send(CHUNKED.replace(b"Host", b"Content-Encoding: gzip\r\nHost"))
    raw.send(b"%x\r\n" % len(packed) + packed)
    await asyncio.sleep(0.05)
    raw.send(b"\r\n20\r\n" + b"\xff" * 32 + b"\r\n")
    status, _, body = await asyncio.wait_for(raw.answer(), 5)
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    raw.leave()


async def test_a_refused_client_that_resets_the_connection_is_no_error(
    served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The system may know of the reset before asyncio does."""

    def not_connected(transport: Any) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    caplog.set_level(logging.ERROR)
    raw = await Raw.to(served.url)
    monkeypatch.setattr("asyncio.selector_events._SelectorSocketTransport.write_eof", not_connected)
    second = post("/v1/completions", SHORT).replace(b"Host", b"Content-Encoding: gzip\r\nHost")
    raw.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + second)
    await raw.everything()
    await served.until(lambda: served.connections.counters.connections_open == 0)
    assert caplog.records == []


async def test_a_refused_client_that_ends_its_side_is_not_probed(
    served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Our side is closed after the first answer, because the second body is no gzip."""
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr("fgengine.server.http_connection.FIRST_PROBE_SECONDS", 0.0)
    raw = await Raw.to(served.url)
    second = post("/v1/completions", SHORT).replace(b"Host", b"Content-Encoding: gzip\r\nHost")
    raw.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + second)
    assert (await raw.answer())[0] == 200
    raw.end()
    assert await raw.closed()
    await served.until(lambda: served.connections.counters.connections_open == 0)
    assert caplog.records == []


async def test_a_flood_of_headers_ends_with_an_answer(served: Any) -> None:
    raw = await Raw.to(served.url)
    raw.send(HEAD + b"X: " + b"x" * 20_000_000)
    await raw.writer.drain()  # it sends all of it before it reads
    await asyncio.sleep(0.1)
    assert (await raw.answer())[0] == 431
    raw.leave()
    await served.until(lambda: served.connections.counters.connections_open == 0)


async def test_an_unfinished_body_does_not_delay_a_refusal(served: Any) -> None:
    raw = await Raw.to(served.url)
    raw.send(half_body(5_000_000).replace(b"/v1/completions", b"/nothing"))
    assert (await raw.answer())[0] == 404
    raw.leave()
