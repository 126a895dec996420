"""The settings of the HTTP server. Those of the engine are in ``fgengine.config``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fgengine.settings import Setting, check


@dataclass(frozen=True)
class ServerOptions:
    """The settings of the HTTP server. Raises OutOfBounds, a ValueError, for values that are not allowed.

    ServerOptions(port=8000)
    """

    host: Annotated[
        str, Setting("Address to listen on; 0.0.0.0: all, unprotected.", "Network", first=True)
    ] = "127.0.0.1"
    port: Annotated[
        int, Setting("Port to listen on; 0: any free one.", "Network", first=True, ge=0, le=65535)
    ] = 10000

    drain_timeout: Annotated[
        float,
        Setting(
            "Time that open requests have to finish after SIGTERM or SIGHUP. 0: they end at once.",
            "Operation",
            unit="seconds",
            ge=0,
        ),
    ] = 30.0
    hang_timeout: Annotated[
        float,
        Setting(
            "An engine that has not answered for this time, and for four of its longest steps, is hung: "
            "/health is 503 until it answers again.",
            "Operation",
            unit="seconds",
            gt=0,
        ),
    ] = 60.0
    restart_engine: Annotated[
        int,
        Setting(
            "How many times an engine that broke or hung is replaced by a new one. Open requests end with an "
            "error.",
            "Operation",
            ge=0,
        ),
    ] = 0

    def __post_init__(self) -> None:
        check(self)
