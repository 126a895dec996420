"""How the client gets access to a server: headers such as a key, and the certificates that it trusts."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from fgengine.server.options import KEY_VARIABLE

KEY_VARIABLES = (KEY_VARIABLE, "OPENAI_API_KEY")
"""Variables with the key of a server: FastGen's, which sets the server's keys too; other servers'. The first
that is set counts."""


@dataclass(frozen=True, slots=True)
class Access:
    """How the client reaches a server."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request."""
    ca_file: Path | None = None
    """File with certificates of authorities, in PEM. None: those of the system."""
    insecure: bool = False
    """Whether any certificate of the server is accepted."""

    def with_key_for(self, url: str, environ: Mapping[str, str] = os.environ) -> Access:
        """Return this access with the key of the environment, if the user gave no other one.

        The key is sent only to this machine or over https, never in the clear to another machine.
        """
        parts, variable = urlsplit(url), key_variable(environ)
        is_here = parts.hostname in ("localhost", "127.0.0.1", "::1")
        has_own = any(name.lower() == "authorization" for name in self.headers)
        if variable is None or has_own or not (is_here or parts.scheme == "https"):
            return self
        return self._with_key(environ[variable])

    def with_own_key(self, environ: Mapping[str, str] = os.environ) -> Access:
        """Return the access to a server that this process starts, and which has the same environment."""
        return self._with_key(environ[KEY_VARIABLE]) if environ.get(KEY_VARIABLE) else self

    def _with_key(self, keys: str) -> Access:
        key = keys.partition(",")[0].strip()  # any one of them is enough
        return replace(self, headers={**self.headers, "Authorization": f"Bearer {key}"})

    def tls(self) -> ssl.SSLContext:
        """Return a context for https. Raises ValueError if ``ca_file`` cannot be used."""
        try:
            context = ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ValueError(f"--ca-file {self.ca_file} cannot be used: {error}") from None
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def key_variable(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the name of the variable whose key is sent; None: there is no key in the environment."""
    return next((name for name in KEY_VARIABLES if environ.get(name)), None)


OPEN = Access()
"""For a server that needs neither a key nor a certificate."""
