"""The settings of the HTTP server. Those of the engine are in ``fgengine.config``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from fgengine.server.access import keys_in, names_in
from fgengine.settings import OutOfBounds, Setting, check, described

KEY_VARIABLE = "FGBENCH_API_KEY"
"""Variable of the environment with the keys, for the server and for the clients that fgbench starts."""
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True)
class ServerOptions:
    """The settings of the HTTP server. Raises OutOfBounds, a ValueError, for values that are not allowed.

    ServerOptions(port=8000)
    """

    host: Annotated[
        str,
        Setting(
            "Address to listen on; 0.0.0.0: all of them, which is safe only with a key.",
            "Network",
            first=True,
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, Setting("Port to listen on; 0: any free one.", "Network", first=True, ge=0, le=65535)
    ] = 10000
    api_key: Annotated[
        str | None,
        Setting(
            "Key that every request needs, as 'Authorization: Bearer KEY', except for /health. Several are "
            "separated by commas. Other users of this machine can see the options of a program: set "
            "$FGBENCH_API_KEY instead. Default: that variable; without it, no key is needed.",
            "Access",
            secret=True,
        ),
    ] = field(default=None, repr=False)
    allowed_hosts: Annotated[
        tuple[str, ...],
        Setting(
            "Further names under which clients reach the server, separated by commas, such as that of a "
            "proxy; *: any. Addresses and this machine's name are always allowed. Other names are refused, "
            "because a web page may have made them point to this machine. Web pages of the named hosts may "
            "send requests too.",
            "Access",
        ),
    ] = ()
    max_requests_per_client: Annotated[
        int | None,
        Setting(
            "Open requests that a client may have; more are answered 429. A client is a key if there are "
            "several, else an address. Default: no limit.",
            "Access",
            unit="requests",
            ge=1,
        ),
    ] = None
    log_level: Annotated[
        LogLevel,
        Setting(
            "Least important messages in the log, which is stderr. info has one line for each request.", "Log"
        ),
    ] = "info"
    log_format: Annotated[
        LogFormat, Setting("Form of the log: text, or one JSON object in each line.", "Log")
    ] = "text"

    drain_timeout: Annotated[
        float,
        Setting(
            "Time that open requests have to finish after SIGTERM or SIGHUP. 0: they end at once.",
            "Operation",
            unit="seconds",
            ge=0,
            finite=True,
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
            finite=True,
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
            "Time after which an idle connection is closed. Behind a proxy, set it longer than the proxy's "
            "idle timeout.",
            "Network",
            unit="seconds",
            gt=0,
            finite=True,
        ),
    ] = 75.0
    ssl_certfile: Annotated[
        str | None, Setting("Certificate (PEM, with the chain); serves https.", "Network")
    ] = None
    ssl_keyfile: Annotated[
        str | None,
        Setting(
            "Private key of --ssl-certfile (PEM). Default: the certificate's file has it too.", "Network"
        ),
    ] = None

    def __post_init__(self) -> None:
        check(self)
        if not self.host.strip():
            raise self._problem(
                "host",
                "is empty, perhaps by a shell variable that is not set: give 127.0.0.1 for this machine "
                "alone, or 0.0.0.0 for all of its addresses",
            )
        try:
            _ = self.keys
        except ValueError as error:
            raise self._problem("api_key", str(error)) from None
        try:
            _ = self.allowed_names
        except ValueError as error:
            raise self._problem("allowed_hosts", str(error)) from None
        if self.served_model_name and not self.model_names:
            raise self._problem("served_model_name", "has no name: give one, or leave the option out")
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise self._problem("ssl_keyfile", "needs ssl_certfile (--ssl-certfile): the key's certificate")

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys, of which every request needs one; empty: none is needed."""
        return () if self.api_key is None else keys_in(self.api_key)

    @property
    def allowed_names(self) -> tuple[str, ...]:
        """The names in ``allowed_hosts``."""
        return names_in(self.allowed_hosts)

    def with_key_of(self, environ: Mapping[str, str]) -> ServerOptions:
        """Return the options with the key of the environment, unless they have one.

        Raises ValueError if the variable is set and holds no key, because then a key was meant.
        """
        if self.api_key is not None or KEY_VARIABLE not in environ:
            return self
        try:
            return replace(self, api_key=environ[KEY_VARIABLE])
        except OutOfBounds as error:
            raise ValueError(f"${KEY_VARIABLE}{str(error).removeprefix('api_key')}") from None

    def _problem(self, name: str, problem: str) -> OutOfBounds:
        (one,) = (one for one in described(type(self)) if one.name == name)
        return OutOfBounds(one, problem)

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names in ``served_model_name``."""
        parts = [part.strip() for text in self.served_model_name for part in text.split(",")]
        return tuple(filter(None, parts))
