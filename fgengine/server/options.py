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

    def __post_init__(self) -> None:
        check(self)
