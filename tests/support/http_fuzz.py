"""Requests that no client should send, each made from a seed, and the judgement of their answers.

    case = make_case(42)                          # always the same bytes
    answers = await send("127.0.0.1", 8000, case)
    problem = judge(case, answers)                # None, or what is wrong with the server's answers

The routes and the fields of bodies are those of the server's OpenAPI document. So new ones are tried too.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gzip
import json
import random
import re
import socket
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from fgengine.server.fields import HARMLESS, NO_EFFECT
from fgengine.server.openapi import OPERATIONS

ANSWER_SECONDS = 20.0
"""A complete request must be answered within this time, and a connection closed."""
QUIET_SECONDS = 0.3
"""A client that has sent something incomplete waits so long before it closes its side."""

RIGHT_5XX = frozenset({503, 505})
"""Statuses without a failure of the server: it is busy or starting; it has not this version of HTTP."""

ROUTES = sorted((method, path.replace("{name}", "fake")) for method, path in OPERATIONS)
BODIES = {
    path: list(operation.examples.values()) for (_, path), operation in OPERATIONS.items() if operation.body
}
FIELDS = sorted(
    {name for operation in OPERATIONS.values() if operation.body for name in operation.body.__struct_fields__}
    | set(NO_EFFECT)
    | HARMLESS
    | {"temprature", "", "\x00", "a" * 300, "prompt.text"}
)
METHODS = (
    *("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"),
    *("get", "PROPFIND", "BREW", "", "G\x00T", "POST POST", "\u00fc"),
)
VALUES = (
    *("null", "true", "false", "0", "1", "-1", "2", "-0", "0.0", "1.5", "1e-300", "1e300", "1e400", "-1e400"),
    *("NaN", "Infinity", "-Infinity", "2147483647", "2147483648", "4294967296", "-9223372036854775808"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551616", "1" * 400, "0x10", "01", "1_0"),
    *(
        '""',
        '"a"',
        '"\\u0000"',
        '"\\ud800"',
        '"\\udfff\\ud800"',
        '"\\u00fc\\ud83d\\ude00"',
        '"\ud83d"',
        "'a'",
    ),
    *(
        '"' + "a" * 5000 + '"',
        '"' + "\\n" * 600 + '"',
        '"</s><|im_end|>"',
        '"unterminated',
        '"bad \\x escape"',
    ),
    *(
        "[]",
        "[null]",
        "[0]",
        "[-1]",
        "[1e3]",
        "[true]",
        '["a","b"]',
        '["", ""]',
        "[[]]",
        "[[0],[1]]",
        "[0,[1],2]",
    ),
    *("[" + ",".join(["1"] * 300) + "]", "[" + ",".join(['"a"'] * 40) + "]", "[9223372036854775807]"),
    *("{}", '{"a":1}', '{"type":"text"}', '{"include_usage":true}', '{"include_usage":1}', '{"1":"x"}'),
    *('[{"role":"user","content":"a"}]', '[{"role":"robot","content":"a"}]', '[{"role":1,"content":null}]'),
    *('[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url"}]}]', '[{"content":"a"}]'),
    *('"required"', '"none"', '"auto"', '{"type":"function","function":{"name":"weather"}}'),
    *(
        '[{"type":"function","function":{"name":"weather"}}]',
        '[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":1}}}}]',
        '[{"type":"function","function":{"name":"f","parameters":' + '{"a":' * 900 + "1" + "}" * 900 + "}}]",
        '[{"role":"assistant","tool_calls":[{"id":"1","type":"function","function":{"name":"f",'
        '"arguments":"{\\"a\\":1e400}"}}]},{"role":"tool","tool_call_id":"1","content":"a"}]',
    ),
    *("[" * 2000, "[" * 500 + "]" * 500, '{"a":' * 800 + "1" + "}" * 800),
)
"""JSON texts of values, valid or not."""
ODD_HEADERS = (
    *("Expect: 100-continue", "Expect: 200-ok", "Connection: Upgrade\r\nUpgrade: websocket", "Upgrade: h2c"),
    *(
        "Host:",
        "Host: a\r\nHost: b",
        "Host: \u00fc",
        ": empty",
        "No colon",
        "Na me: x",
        "X: a\r\n folded",
        "X:\x00",
    ),
    *(
        "X-Long: " + "a" * 9000,
        "\r\n".join(f"X-{i}: {i}" for i in range(300)),
        "Cookie: a=b; \x01",
        "Range: bytes=0-1",
    ),
    *(
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: identity",
        "TE: trailers",
    ),
    *(
        "Content-Type: text/plain",
        "Content-Type: application/json; charset=utf-16",
        "Content-Type:",
        "Content-Type: \udcff",
        "Connection: 100-continue",
        "Upgrade: 100-continue",
        "TE: 100-continue",
        "X" * 400 + ": a",
        "Accept: x/y",
    ),
    *(
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: -1",
        "Content-Length: 1e3",
        "Content-Length: 99999999999",
    ),
    *(
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Accept: application/openmetrics-text;version=9",
        "Origin: http://x",
    ),
    *(
        "Authorization: Bearer \u00fc",
        "Authorization: Basic x",
        "X-Request-Id: " + "a" * 500,
        "X-Request-Id: \u00fc\t",
    ),
)
ENCODINGS = (
    "gzip",
    "deflate",
    "br",
    "zstd",
    "identity",
    "compress",
    "gzip, gzip",
    "GZIP",
    "",
    "x" * 300,
    "\u00fc",
    "\udc80",
)
PATHS = (
    *(
        "/",
        "//",
        "/..",
        "/v1",
        "/v1/",
        "/v1/models/",
        "/v1/models/a%2Fb",
        "/v1/models/%00",
        "/v1/models/%ff%fe",
    ),
    *(
        "/v1/completions/",
        "/V1/COMPLETIONS",
        "/v1//completions",
        "/v1/../health",
        "/%2e%2e/%2e%2e/etc/passwd",
        "*",
        "x",
    ),
    *(
        "/\u00fc",
        "/%",
        "/%zz",
        "/a b",
        "/" + "a" * 3000,
        "/v1/models/" + "\u00fc" * 50,
        "http://x/health",
        "http://",
        "?",
    ),
    *(
        "/health?x=" + "a" * 3000,
        "/health?&&=&",
        "/metrics?name[]=%00",
        "/stats#fragment",
        "/health;x",
        "/\\",
        "/\x00",
        "/\x7f",
    ),
)
WHOLE_BODIES = (
    *(b"", b"null", b"[]", b"\xff\xfe{}", b"[" * 5000, b'"abc"', b"1e999"),
    *(b'{"prompt": [1, 2, 99999999999999999999], "max_tokens": 2}', b'{"prompt": "a"}' * 2),
)
"""Bodies that take the place of a valid one."""
ENDINGS = ("wait", "wait", "wait", "wait", "wait", "half-close", "reset", "leave")
Ending = Literal["wait", "half-close", "reset", "leave"]


@dataclass(frozen=True)
class Case:
    """What a client sends over one connection, and how it leaves."""

    seed: int
    pieces: tuple[bytes, ...]
    """The bytes, in the pieces in which they are written."""
    ending: Ending
    requests: int
    """The largest number of answers that they can have."""
    complete: bool
    """Whether an answer must come without the client closing its side."""
    head: bool = False
    """Whether answers may lack their body, because a request has the method HEAD."""

    @property
    def raw(self) -> bytes:
        """All bytes."""
        return b"".join(self.pieces)

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.ending}, {len(self.pieces)} pieces, raw bytes {self.raw!r}"


@dataclass(frozen=True)
class Answer:
    """One answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool
    """Whether the body has arrived up to its end."""


def make_case(seed: int) -> Case:
    """Return the case of a seed."""
    rng = random.Random(seed)
    make = rng.choice((_valid, _odd_fields, _odd_fields, _odd_fields, _damaged_body, _encoded, _framed))
    if rng.random() < 0.25:
        make = rng.choice((_odd_headers, _odd_target, _odd_target, _damaged_request))
    count = rng.choice((1, 1, 1, 1, 1, 2, 5))
    requests = [make(rng, last=number == count - 1) for number in range(count)]
    raw = b"".join(text for text, _ in requests)
    complete = all(clean for _, clean in requests)
    ending: Ending = rng.choice(ENDINGS)  # type: ignore[assignment]
    if ending != "wait" and rng.random() < 0.5:
        raw = raw[: rng.randrange(len(raw) + 1)]  # it leaves in the middle of the request
    cuts = sorted(rng.randrange(len(raw) + 1) for _ in range(rng.choice((0, 0, 1, 4))))
    pieces = tuple(raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True))
    head = raw.startswith(b"HEAD") or b"HEAD /" in raw
    answers = max(count, raw.count(b" HTTP/"))
    if make is _damaged_request:
        answers += count  # what comes after a body that has become longer is one more request, and an error
    return Case(seed, pieces, ending, answers, complete and ending == "wait", head)


Made = tuple[bytes, bool]
"""The bytes of a request, and whether it is complete, so that it must be answered."""


def _request(
    method: str, target: str, headers: Sequence[str] = (), body: bytes | None = None, *, last: bool = True
) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *headers]
    if not any(line.lower().startswith("host:") for line in headers):
        lines.insert(1, "Host: 127.0.0.1")
    if body is not None and not any(
        line.lower().startswith(("content-length", "transfer-")) for line in headers
    ):
        lines.append(f"Content-Length: {len(body)}")
    if body is not None and not any(line.lower().startswith("content-type") for line in headers):
        lines.append("Content-Type: application/json")
    if last:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode(errors="surrogatepass") + (body or b"")


def _posted(rng: random.Random) -> tuple[str, bytes]:
    """Return a route and a valid body for it."""
    path = rng.choice(sorted(BODIES))
    body = {**rng.choice(BODIES[path]), "max_tokens": rng.choice((1, 2, 8))}
    if rng.random() < 0.5:
        body["stream"] = rng.random() < 0.7
    return path, json.dumps(body).encode()


def _valid(rng: random.Random, *, last: bool) -> Made:
    if rng.random() < 0.5:
        path, body = _posted(rng)
        return _request("POST", path, body=body, last=last), True
    method, path = rng.choice(ROUTES)
    return _request(method, path, body=b"{}" if method == "POST" else None, last=last), True


def _odd_fields(rng: random.Random, *, last: bool) -> Made:
    """A body whose fields have odd values, unknown names, or names that occur twice."""
    path, body = _posted(rng)
    fields = [(name, json.dumps(value)) for name, value in json.loads(body).items()]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        name, value = rng.choice(FIELDS), rng.choice(VALUES)
        action = rng.randrange(4)
        if action == 0 and fields:
            fields[rng.randrange(len(fields))] = (rng.choice(fields)[0], value)
        elif action == 1 and fields:
            fields.insert(rng.randrange(len(fields)), (rng.choice(fields)[0], value))  # twice
        elif action == 2 and fields:
            del fields[rng.randrange(len(fields))]
        else:
            fields.append((name, value))
    text = ", ".join(f"{json.dumps(name)}: {value}" for name, value in fields)
    whole = rng.choice(
        ("{%s}",) * 12 + ("[%s]", "[{%s}]", "{%s", "%s", "\ufeff{%s}", "{%s} {}", '"%s"', "{%s,}")
    )
    return _request("POST", path, body=(whole % text).encode(errors="surrogatepass"), last=last), True


def _damaged(rng: random.Random, data: bytes) -> bytes:
    """Return the bytes with some of them changed, added, removed or repeated."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(damaged) + 1)
        action = rng.randrange(5)
        if action == 0 and at < len(damaged):
            damaged[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            damaged[at:at] = rng.randbytes(rng.choice((1, 1, 4, 64)))
        elif action == 2:
            del damaged[at : at + rng.choice((1, 1, 3, 50))]
        elif action == 3:
            damaged[at:at] = damaged[at : at + rng.choice((1, 8, 64))] * rng.choice((1, 2, 30))
        elif at < len(damaged):
            damaged[at] = rng.choice((0, 10, 13, 32, 34, 44, 92, 123, 125, 128, 255))
    return bytes(damaged)


def _damaged_body(rng: random.Random, *, last: bool) -> Made:
    path, body = _posted(rng)
    body = _damaged(rng, body) if rng.random() < 0.8 else rng.choice(WHOLE_BODIES)
    if rng.random() < 0.1:
        body = body.decode(errors="replace").encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    return _request("POST", path, body=body, last=last), True


def _damaged_request(rng: random.Random, *, last: bool) -> Made:
    """A request that is damaged anywhere. Its lengths may be wrong then."""
    return _damaged(rng, _valid(rng, last=last)[0]), False


_gzip = functools.partial(gzip.compress, mtime=0)  # otherwise it writes the time


def _not_gzip(data: bytes) -> bytes:
    """Return what begins as gzip does and goes on as something else."""
    return b"\x1f\x8b" + zlib.compress(data)


def _encoded(rng: random.Random, *, last: bool) -> Made:
    """A body with a Content-Encoding, which may be wrong, cut off or damaged, or may grow large."""
    path, body = _posted(rng)
    if rng.random() < 0.2:
        body = body[:-1] + b" " * rng.choice((10**5, 10**7)) + body[-1:]
    pack: Callable[[bytes], bytes] = rng.choice((_gzip, zlib.compress, _not_gzip, bytes))
    packed = pack(body) if pack is not bytes or len(body) < 10**5 else body[:5000]
    if rng.random() < 0.2:
        packed = packed[: rng.randrange(len(packed) + 1)]
    elif rng.random() < 0.2 and len(packed) < 10**5:
        packed = _damaged(rng, packed)
    return _request("POST", path, [f"Content-Encoding: {rng.choice(ENCODINGS)}"], packed, last=last), True


def _framed(rng: random.Random, *, last: bool) -> Made:
    """A body in chunks, or with a wrong length."""
    path, body = _posted(rng)
    if rng.random() < 0.3:
        length = rng.choice((0, 1, len(body) - 1, len(body) + 1, len(body) + 10**6, 10**12))
        made = _request("POST", path, [f"Content-Length: {length}"], body, last=last)
        return made, length < len(body) and last  # what follows may look like the begin of a request
    size = rng.choice((1, 7, 100))
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    damage = rng.random() < 0.5
    if damage:
        framed = rng.choice(
            (
                _damaged(rng, framed),
                framed[: rng.randrange(len(framed))],
                framed.replace(b"\r\n", b"\n"),
                b"ffffffffffffffff\r\n" + framed,
                b"%x\r\n%b\r\n0\r\n\r\n" % (rng.randrange(99), body),
                framed[:-5] + b"z\r\n",
                b"-1\r\n" + framed,
                framed[:-2] + b"X-Trailer: a\r\n\r\n",
                b"5;" + b"a" * 500 + b"\r\n" + framed,
            )
        )
    headers = ["Transfer-Encoding: chunked"]
    if rng.random() < 0.1:
        headers.append("Content-Length: 3")  # one of the two is wrong
    return _request("POST", path, headers, framed, last=last), not damage and len(headers) == 1


def _odd_headers(rng: random.Random, *, last: bool) -> Made:
    headers = [rng.choice(ODD_HEADERS) for _ in range(rng.choice((1, 1, 2, 4)))]
    path, body = _posted(rng)
    if rng.random() < 0.4:
        return _request("GET", rng.choice(ROUTES)[1], headers, last=last), False
    return _request("POST", path, headers, body, last=last), False


def _odd_target(rng: random.Random, *, last: bool) -> Made:
    """Other methods, paths and versions of HTTP, or something that is not HTTP."""
    method = rng.choice(METHODS)
    target = rng.choice((rng.choice(PATHS), rng.choice(ROUTES)[1]))
    body = rng.choice((None, None, b"{}", b"x" * 100))
    made = _request(method, target, body=body, last=last)
    kind = rng.randrange(12)
    if kind == 0:
        made = made.replace(
            b"HTTP/1.1", rng.choice((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/", b"http/1.1", b""))
        )
    elif kind == 1:
        made = rng.choice(
            (
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(30),
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
                rng.randbytes(rng.choice((1, 50, 5000))),
                b"\r\n" * 50,
                b"GET /health\r\n\r\n",
                b"GET /health HTTP/1.1\n\n",
                b"\x00",
            )
        )
    return made, False


def each_field_with_each_value() -> Iterator[tuple[str, str, bytes]]:
    """Yield (path, field, body) for every field that a route has and every odd value."""
    for path, operation in ((path, one) for (_, path), one in OPERATIONS.items() if one.body):
        assert operation.body is not None
        valid = {**BODIES[path][0], "max_tokens": 2}
        for name in operation.body.__struct_fields__:
            others = [
                f"{json.dumps(other)}: {json.dumps(it)}" for other, it in valid.items() if other != name
            ]
            for value in VALUES:
                text = ", ".join([*others, f"{json.dumps(name)}: {value}"])
                yield path, name, f"{{{text}}}".encode(errors="surrogatepass")


async def send(host: str, port: int, case: Case) -> list[Answer]:
    """Send a case over a connection of its own, and return the answers.

    Raises:
        TimeoutError: a complete request is not answered in time, or the connection is not closed.
        NotHttp: the server sent something else than answers, or none to a complete request.
    """
    reader, writer = await asyncio.open_connection(host, port)
    received = asyncio.create_task(_receive(reader))
    try:
        with contextlib.suppress(ConnectionError):
            for number, piece in enumerate(case.pieces):
                if number:
                    await asyncio.sleep(0.001)
                writer.write(piece)
                await writer.drain()
        if case.ending == "reset":
            linger = struct.pack("ii", 1, 0)
            with contextlib.suppress(OSError):  # the server may have closed it
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return []
        if case.ending == "leave":
            return []
        if case.ending == "wait":
            await asyncio.wait([received], timeout=ANSWER_SECONDS if case.complete else QUIET_SECONDS)
            if not received.done() and case.complete:
                raise TimeoutError(f"not answered after {ANSWER_SECONDS:g} s")
        if not received.done():
            with contextlib.suppress(OSError):
                writer.write_eof()
        data, was_reset = await asyncio.wait_for(received, ANSWER_SECONDS)
        answers = parse(data, case.head)
        if case.complete and not answers and not was_reset:
            raise NotHttp("a complete request has no answer")
        return answers
    finally:
        received.cancel()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _receive(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """Return all bytes until the connection is closed, and whether it was reset.

    A server that refuses a request before it has read it all resets the connection. Its answer may be lost.
    """
    received = bytearray()
    try:
        while data := await reader.read(1 << 16):
            received += data
    except ConnectionError:
        return bytes(received), True
    return bytes(received), False


# aiohttp repeats the version of the request, whatever it is.
_STATUS_LINE = re.compile(rb"HTTP/\d\.\d (\d{3}) [^\r\n]*\r\n")


class NotHttp(ValueError):
    """The server has sent something that is not an HTTP answer."""


def parse(received: bytes, head: bool) -> list[Answer]:
    """Return the answers in the bytes that a server has sent; those with a status 1xx are left out.

    Raises NotHttp.
    """
    answers: list[Answer] = []
    while received:
        line, (top, separator, rest) = _STATUS_LINE.match(received), received.partition(b"\r\n\r\n")
        if line is None or not separator:
            raise NotHttp(f"the server sent {received[:200]!r}")
        fields = [field.partition(b":") for field in top.split(b"\r\n")[1:]]
        headers = {name.decode().lower(): value.strip().decode() for name, _, value in fields}
        status = int(line[1])
        if status < 200:
            received = rest
            continue
        if head and (not rest or _STATUS_LINE.match(rest)):
            body, received, whole = b"", rest, True
        elif headers.get("transfer-encoding") == "chunked":
            body, received, whole = _unchunk(rest)
        elif "content-length" in headers:
            length = int(headers["content-length"])
            body, received, whole = rest[:length], rest[length:], len(rest) >= length
        elif status in (204, 304):
            body, received, whole = b"", rest, True
        else:
            body, received, whole = rest, b"", True
        answers.append(Answer(status, headers, body, whole))
    return answers


def _unchunk(data: bytes) -> tuple[bytes, bytes, bool]:
    """Return the body, what follows it, and whether the body has its end."""
    body = bytearray()
    while True:
        size_text, separator, rest = data.partition(b"\r\n")
        if not separator:
            return bytes(body), b"", False
        size = int(size_text, 16)
        if len(rest) < size + 2:
            return bytes(body), b"", False
        body += rest[:size]
        data = rest[size + 2 :]
        if size == 0:
            return bytes(body), data, True


def judge(case: Case, answers: Sequence[Answer]) -> str | None:
    """Return what is wrong with the answers to a case; None if nothing is."""
    if len(answers) > case.requests:
        return f"{case.requests} requests have {len(answers)} answers"
    for answer in answers:
        problem = _judge(answer, case)
        if problem is not None:
            return f"status {answer.status}: {problem}; headers {answer.headers}, body {answer.body[:500]!r}"
    return None


def _judge(answer: Answer, case: Case) -> str | None:
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if answer.status >= 500 and answer.status not in RIGHT_5XX:
        return "the server has failed"
    if case.complete and not answer.whole:
        return "the answer is cut off"
    if not answer.body or not answer.whole:
        return None if case.head or not answer.whole else "the answer has no body"
    if answer.status >= 400:
        return _judge_error(kind, answer.body)
    if kind == "application/json":
        try:
            json.loads(answer.body)
        except ValueError as error:
            return f"it is not JSON: {error}"
    elif kind == "text/event-stream" and not answer.body.endswith(b"data: [DONE]\n\n"):
        return None if b'{"error":' in answer.body else "the stream has no end"
    return None


def _judge_error(kind: str, body: bytes) -> str | None:
    if kind != "application/json":
        return f"an error is {kind or 'without a type'}, not JSON"
    try:
        found = json.loads(body)
    except ValueError as error:
        return f"it is not JSON: {error}"
    error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict) or not {"message", "type", "param", "code"} <= set(error):
        return "the error is not in OpenAI's form"
    message = error["message"]
    if not isinstance(message, str) or len(message.split()) < 3:
        return "the error has no sentence"
    return None
