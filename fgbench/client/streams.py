"""Cuts a byte stream into messages, wherever the network happened to cut it. Pure."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 8 * 1024**2
"""A longer message is no answer to a benchmark's request."""


class StreamError(ValueError):
    """The bytes are not the protocol they should be."""


class ServerSentEvents:
    """The ``data`` of each server-sent event (WHATWG HTML, section 9.2), as the OpenAI API streams them."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """Events completed by ``chunk``. Comments and other fields are left out; raises StreamError."""
        if not self._rest and not self._data and _is_one_event(chunk):
            return [chunk[6:-2]]
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        _check_length(self._rest)
        events: list[bytes] = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        return events

    def close(self) -> list[bytes]:
        """The event that the end of the stream completes, where the server left out the last empty line."""
        return self.feed(b"\n\n")


def _is_one_event(chunk: bytes) -> bool:
    """A single line of data and nothing else: how nearly all pieces of an answer arrive."""
    return (
        chunk.startswith(b"data: ")
        and chunk.endswith(b"\n\n")
        and chunk.find(b"\n") == len(chunk) - 2
        and b"\r" not in chunk
        and len(chunk) <= MAX_MESSAGE_BYTES
    )


class NulSeparated:
    """Messages each ended by a NUL byte, as FastServe's and vLLM's old /generate stream them."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        *messages, self._rest = (self._rest + chunk).split(b"\0")
        _check_length(self._rest)
        return [m for m in messages if m]

    def close(self) -> list[bytes]:
        return self.feed(b"\0")


def _check_length(rest: bytes) -> None:
    if len(rest) > MAX_MESSAGE_BYTES:
        raise StreamError(f"a streamed message is longer than {MAX_MESSAGE_BYTES} bytes")
