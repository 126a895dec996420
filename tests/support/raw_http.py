"""A client that writes bytes to a socket, for requests that no HTTP library sends."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit


def post(path: str, body: dict[str, Any], padding: int = 0) -> bytes:
    """Return the bytes of a POST request; ``padding``: number of spaces to add to its body."""
    raw = json.dumps(body).encode() + b" " * padding
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw


def half_body(size: int = 1000, *, sent: bytes = b"{") -> bytes:
    """Return the bytes of a POST request whose body ends early."""
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {size}\r\n\r\n".encode() + sent


class Raw:
    """One connection to a server.

    raw = await Raw.to("http://127.0.0.1:8000")
    raw.send(b"GET / HTTP/1.0\\r\\n\\r\\n")
    status, headers, body = await raw.answer()
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, url: str, **options: Any) -> Raw:
        """Connect to the server at a URL."""
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port, limit=2**24, **options))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def end(self) -> None:
        """Close our side; the answer can still be read."""
        self.writer.write_eof()

    async def everything(self) -> bytes:
        """Read until the server closes the connection."""
        return await self.reader.read()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """Read one answer with a Content-Length; return its status, headers (lower case) and JSON body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        status = int(head[0].split()[1])
        if status == 100:
            return await self.answer()
        lines = (line.partition(":") for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in lines}
        return status, headers, json.loads(await self.reader.readexactly(int(headers["content-length"])))

    async def closed(self) -> bool:
        """Wait until the server closes the connection; return whether it did so without another byte."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True

    def leave(self) -> None:
        self.writer.close()
