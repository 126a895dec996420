"""Reads the bodies that clients post, up to a size, and logs the unknown fields that they have."""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web

from fgengine.clock import WallClock
from fgengine.server.handlers import SERVICE
from fgengine.server.parsing import read_body
from fgengine.server.schemas import Body

LARGE_BODY = 64 * 1024
"""Bytes from which bodies are parsed one at a time, with a pause for other requests in between."""

log = logging.getLogger("fgengine.server")


async def read_posted(request: web.Request, kind: type[Body]) -> tuple[Body, float]:
    """Return the checked body, and the time when it was read (engine's clock). Raises BadRequestError."""
    service = request.app[SERVICE]
    raw = await _read(request, service.encoder.max_body_bytes)
    arrival = WallClock().now()
    if len(raw) < LARGE_BODY:
        return read_body(raw, kind, _log_once), arrival
    async with service.parsing:
        await asyncio.sleep(0)
        return read_body(raw, kind, _log_once), arrival


async def _read(request: web.Request, limit: int) -> bytes:
    """Return the body. Raises BodyTooLarge; before anything is read if its length is known."""
    body = bytearray()
    if (request.content_length or 0) <= limit:
        async for piece in request.content.iter_any():
            body += piece
            if len(body) > limit:
                break
        else:
            return bytes(body)
    raise BodyTooLarge(f"the body is larger than {limit} bytes, more than this model's prompts need")


class BodyTooLarge(ValueError):
    """A body is larger than any prompt for the model."""


_ignored: set[str] = set()
"""Fields that the log has named."""
MAX_IGNORED = 100
"""Number of names after which no more are logged, because a client can send any number."""


def _log_once(name: str) -> None:
    if name not in _ignored and len(_ignored) < MAX_IGNORED:
        _ignored.add(name)
        log.warning("requests have the field %r, which this server does not know and ignores", name[:64])
