"""What the handlers of all routes share: their type, and what they find in the application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from fgengine.server.generation import Service
from fgengine.server.options import ServerOptions

SERVICE = web.AppKey("service", Service)
OPTIONS = web.AppKey("options", ServerOptions)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
