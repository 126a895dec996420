"""Answers that are sent piece by piece."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from fgengine.scheduling.refusal import Busy
from fgengine.server.client import EngineError
from fgengine.server.errors import answer_to
from fgengine.server.logs import current_entry


class StreamedResponse(web.StreamResponse):
    """A streamed answer that remembers whether it failed."""

    failure: str | None = None
    """The error with which it ended after its status had been sent."""


class Stream:
    """A streamed answer. If the engine breaks during it, the last message is the error."""

    def __init__(self, request: web.Request, content_type: str, message: Callable[[bytes], bytes]) -> None:
        """``message`` turns one JSON body into one message of the stream."""
        self._request = request
        self._wrap = message
        headers = {"Content-Type": content_type, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        if (entry := current_entry()) is not None:
            headers["X-Request-Id"] = entry.id
        self._response = StreamedResponse(headers=headers)

    async def open(self) -> None:
        """Send the headers now. Otherwise they are sent with the first message."""
        await self._response.prepare(self._request)

    async def write(self, bodies: list[bytes]) -> None:
        """Send one message for each body, all in one write."""
        if not self._response.prepared:
            await self.open()
        await self._response.write(b"".join(map(self._wrap, bodies)))

    async def close(self, last: bytes = b"") -> web.StreamResponse:
        """Send ``last`` as it is and end the stream."""
        await self._response.write_eof(last)
        return self._response

    async def fail(self, error: EngineError | Busy) -> web.StreamResponse:
        """End the stream with the error. Raises it if no headers were sent, so that it sets the status."""
        if not self._response.prepared:
            raise error
        self._response.failure = str(error)
        body = answer_to(error, self._request).body
        assert isinstance(body, bytes)
        await self.write([body])
        return await self.close()
