"""Splits a byte stream into messages, independent of how the network split it. Has no side effects."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 8 * 1024**2
"""A longer message is an error."""


BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class StreamError(ValueError):
    """The bytes do not follow the protocol."""


class ServerSentEvents:
    """Splits server-sent events (WHATWG HTML, section 9.2), which the OpenAI API streams, into their data.

    Lines end with LF, CR LF or CR. Events without data, such as heartbeats, are skipped.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._after_cr = False
        """Whether the last chunk ended with CR. An LF at the start of the next one belongs to it."""
        self._started = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that ``chunk`` completes, without comments and other fields.

        Raises StreamError if an event is too long.
        """
        if not self._rest and not self._data and not self._after_cr and _is_one_event(chunk):
            self._started = True
            return [data] if (data := chunk[6:-2]) else []
        *lines, self._rest = (self._rest + self._with_lf(chunk)).split(b"\n")
        _check_length(self._rest)
        events: list[bytes] = []
        for line in lines:
            if not line:
                if data := b"\n".join(self._data):
                    events.append(data)
                self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        return events

    def _with_lf(self, chunk: bytes) -> bytes:
        """Return the chunk with LF at the end of each line, without the byte order mark at the beginning."""
        if not self._started and chunk:
            chunk = chunk.removeprefix(BYTE_ORDER_MARK)
            self._started = True
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        if not chunk:
            return chunk
        self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in chunk else chunk

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
