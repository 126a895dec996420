"""A fast server that streams fixed answers, used to measure the limit of a load generator.

It reads only the length of a request and sends prepared bytes. Each piece is a separate write, so that it
arrives separately at the client. ``python bench/null_server.py`` prints its port and ends with its parent.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import re
from typing import Any

from fgbench.client.sending import run_async

PROMPT_TOKENS = 64
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
CLOSE = re.compile(rb"connection: *close", re.IGNORECASE)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n"


def pieces_of(tokens: int) -> list[bytes]:
    """Return the writes of an answer, one per token. The first includes the head, the last usage and end."""

    def chunk(event: bytes) -> bytes:
        data = b"data: " + event + b"\n\n"
        return b"%x\r\n%b\r\n" % (len(data), data)

    token = chunk(
        b'{"id":"cmpl-0","object":"text_completion","created":1,"model":"null","choices":[{"index":0,'
        b'"text":" word","logprobs":null,"finish_reason":null,"stop_reason":null}],"usage":null}'
    )
    usage = b'{"id":"cmpl-0","object":"text_completion","created":1,"model":"null","choices":[],"usage":'
    usage += b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}}' % (
        PROMPT_TOKENS,
        PROMPT_TOKENS + tokens,
        tokens,
    )
    pieces = [token] * tokens
    pieces[0] = OK % b"text/event-stream" + b"Transfer-Encoding: chunked\r\n\r\n" + pieces[0]
    pieces[-1] += chunk(usage) + chunk(b"[DONE]") + b"0\r\n\r\n"
    return pieces


class Null(asyncio.Protocol):
    """One connection of the server."""

    def __init__(self, pieces: list[bytes], gap: float) -> None:
        self._pieces = pieces
        self._gap = gap
        self._received = b""
        self._closing = False
        self._later = asyncio.get_running_loop().call_later

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not end or len(body) < (int(length[1]) if length else 0):
            return
        self._received = b""
        self._closing = CLOSE.search(head) is not None
        if head.startswith(b"POST"):
            self._send(0)
        else:
            models = b'{"data":[{"id":"null"}]}'
            head = OK % b"application/json" + b"Content-Length: %d\r\n\r\n" % len(models)
            self._transport.write(head + models)

    def _send(self, index: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(self._pieces[index])
        if index + 1 < len(self._pieces):
            self._later(self._gap, self._send, index + 1)
        elif self._closing:
            self._transport.close()


async def serve(tokens: int, gap: float) -> None:
    pieces = pieces_of(tokens)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Null(pieces, gap), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    gc.freeze()
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=16, help="pieces of each answer")
    parser.add_argument("--gap", type=float, default=0.005, help="seconds between two pieces of an answer")
    parser.add_argument("--core", type=int, help="the only core to run on")
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    run_async(serve(options.tokens, options.gap))


if __name__ == "__main__":
    main()
