"""The settings of the HTTP server. Those of the engine are in ``fgengine.config``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

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
    served_model_name: Annotated[
        tuple[str, ...],
        Setting(
            "Name of the model in answers and requests, in place of --model. Several are separated by "
            "commas, or the option is repeated; answers carry the first.",
            "API",
        ),
    ] = ()
    generate_form: Annotated[
        Literal["fastserve", "vllm"],
        Setting(
            "Form of the answers of /generate. fastserve: a text; a stream has the output alone, as "
            "FastServe sends it. vllm: a list of texts that begin with the prompt, as vLLM's old api_server "
            "sends them.",
            "API",
        ),
    ] = "fastserve"

    def __post_init__(self) -> None:
        check(self)

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names in ``served_model_name``."""
        parts = [part.strip() for text in self.served_model_name for part in text.split(",")]
        return tuple(filter(None, parts))
