"""The options of the client that sends requests to a real server."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fgbench.spec.access import Access
from fgengine.settings import Setting, check

OURS = frozenset(
    {"prompt", "prompt_token_ids", "messages", "max_tokens", "max_completion_tokens", "n", "stream"}
)
"""Fields of a request that decide what is measured."""
_HEADER = re.compile(r"(?P<name>[A-Za-z0-9!#$%&'*+.^_`|~-]+):[ \t]*(?P<value>[\x21-\x7e][\x20-\x7e]*)")
Endpoint = Literal["completions", "chat", "generate"]
_client = functools.partial(Setting, group="Client")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSpec:
    """Options of the client that sends requests to a real server; a simulation does not use them."""

    endpoint: Annotated[
        Endpoint | None,
        _client(
            "API to use: completions or chat (OpenAI), or generate (FastServe). chat sends each prompt as "
            "one message of a user, so it needs a dataset of texts. Default: completions."
        ),
    ] = None
    extra_body: Annotated[
        str | None,
        _client(
            "JSON object whose fields are added to the body of each request, such as '{\"min_tokens\": 1}'. "
            "They replace our fields of the same name. Those that decide what is measured, such as "
            "max_tokens, are refused."
        ),
    ] = None
    send_text: Annotated[
        bool,
        _client(
            "Send prompts of given lengths as text, for a server or an endpoint that takes no token ids. A "
            "text is made of words that have one token each in the model's tokenizer, or in --tokenizer."
        ),
    ] = False
    warmup: Annotated[int, _client("Number of requests sent before the measurement.")] = 4
    request_timeout: Annotated[
        float,
        _client("Seconds after which an unfinished answer is an error.", unit="seconds", gt=0, finite=True),
    ] = 3600.0
    header: Annotated[
        tuple[str, ...],
        _client("With --url: 'Name: value', sent with every request. Repeatable.", secret=True),
    ] = ()
    api_key: Annotated[
        str | None,
        _client(
            "With --url: sent as 'Authorization: Bearer KEY'. Default: $FGBENCH_API_KEY, else "
            "$OPENAI_API_KEY, if the server is on this machine or has https.",
            secret=True,
        ),
    ] = None
    ca_file: Annotated[
        Path | None, _client("With --url: file with the certificate of the authority to trust, in PEM.")
    ] = None
    insecure: Annotated[bool, _client("With --url: accept any certificate of the server.")] = False

    def __post_init__(self) -> None:
        check(self)
        _ = self.headers
        _ = self.extra_fields
        if self.ca_file is not None:
            self.access.tls()

    @property
    def extra_fields(self) -> dict[str, Any]:
        """The fields of ``extra_body``. Raises ValueError if it is no JSON object."""
        if self.extra_body is None:
            return {}
        try:
            found = json.loads(self.extra_body, parse_constant=_refuse_constant)
        except ValueError as error:
            raise ValueError(f"--extra-body is not JSON: {error}") from None
        if isinstance(found, dict) and (ours := sorted(OURS & found.keys())):
            raise ValueError(f"--extra-body must not hold {ours[0]}, which fgbench sets: leave it out")
        if not isinstance(found, dict):
            raise ValueError("--extra-body must be a JSON object, such as '{\"min_tokens\": 1}'")
        return found

    @property
    def access(self) -> Access:
        """How a running server is reached: headers such as a key, and TLS."""
        return Access(self.headers, self.ca_file, self.insecure)

    @property
    def of_a_server(self) -> str:
        """The first given option that a simulation does not have; empty if there is none."""
        given = {
            "--endpoint": self.endpoint is not None,
            "--extra-body": self.extra_body is not None,
            "--send-text": self.send_text,
        }
        return next((flag for flag, is_given in given.items() if is_given), "")

    @property
    def needs_url(self) -> str:
        """The first given option that is only for a running server; empty if there is none."""
        given = {
            "--header or --api-key": bool(self.headers),
            "--ca-file": self.ca_file is not None,
            "--insecure": self.insecure,
        }
        return next((flag for flag, is_given in given.items() if is_given), "")

    @property
    def headers(self) -> dict[str, str]:
        """The headers by name.

        Raises ValueError if a header is malformed. The message does not show it, because it may be secret.
        """
        key = () if self.api_key is None else (f"Authorization: Bearer {self.api_key}",)
        found: dict[str, str] = {}
        for text in (*self.header, *key):
            if (match := _HEADER.fullmatch(text)) is None:
                raise ValueError(
                    "a header or key is malformed: --header takes 'Name: value', and --api-key takes "
                    "printable characters"
                )
            found[match["name"]] = match["value"]
        return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")
