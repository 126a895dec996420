"""Splits a byte stream into messages, independent of how the network split it. Has no side effects."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 8 * 1024**2
"""A longer message is an error."""


class StreamError(ValueError):
    """The bytes do not follow the protocol."""


class ServerSentEvents:
    """Splits server-sent events (WHATWG HTML, section 9.2), which the OpenAI API streams, into their data."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that ``chunk`` completes, without comments and other fields.

        Raises StreamError if an event is too long.
        """
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
        """Return the event that the end of the stream completes, if its last empty line is missing."""
        return self.feed(b"\n\n")


def _is_one_event(chunk: bytes) -> bool:
    """Whether the chunk is exactly one event with one line of data, as nearly all chunks are."""
    return (
        chunk.startswith(b"data: ")
        and chunk.endswith(b"\n\n")
        and chunk.find(b"\n") == len(chunk) - 2
        and b"\r" not in chunk
        and len(chunk) <= MAX_MESSAGE_BYTES
    )


class NulSeparated:
    """Splits messages that end with a NUL byte, as in FastServe's and vLLM's old /generate."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the messages that ``chunk`` completes. Raises StreamError if one is too long."""
        *messages, self._rest = (self._rest + chunk).split(b"\0")
        _check_length(self._rest)
        return [m for m in messages if m]

    def close(self) -> list[bytes]:
        """Return the message that the end of the stream completes, if it lacks the last NUL byte."""
        return self.feed(b"\0")


def _check_length(rest: bytes) -> None:
    if len(rest) > MAX_MESSAGE_BYTES:
        raise StreamError(f"a streamed message is longer than {MAX_MESSAGE_BYTES} bytes")
