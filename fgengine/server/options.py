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
    max_connections: Annotated[
        int | None,
        Setting(
            "Open connections; more get 503. Default: as many as open files allow, at most 16,384.",
            "Network",
            ge=1,
            le=2**20,
        ),
    ] = None
    keep_alive_timeout: Annotated[
        float,
        Setting(
            "Time after which an idle connection is closed; longer than a proxy's in front.",
            "Network",
            unit="s",
            gt=0,
            finite=True,
        ),
    ] = 75.0
    ssl_certfile: Annotated[
        str | None, Setting("Certificate (PEM, with the chain); serves https.", "Network")
    ] = None
    ssl_keyfile: Annotated[
        str | None, Setting("Its private key (PEM); default: in the certificate's file.", "Network")
    ] = None

    def __post_init__(self) -> None:
        check(self)
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile needs ssl_certfile (--ssl-certfile): the key's certificate")
