"""Decides who may use the server: keys, names of the server, web pages of other origins, types of bodies.

A web page that a browser shows can send requests to any address, also to a server on the user's own machine.
Three checks refuse them. The page's origin is in ``Origin``. A page that reaches the server by a name of its
own, which its owner made point to this machine (DNS rebinding), sends that name as ``Host``. And without
asking the server first, a page can only send bodies of types that are not JSON.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

ANY = "*"
"""In the list of allowed hosts: any name."""
_AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+(?:%[\w.-]+)?\]|[^\[\]:/@?#\s,]+)(?::\d*)?", re.IGNORECASE)
_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]+")
"""Printable characters other than the comma, which separates keys."""
SENT_BY_PAGES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
"""Types of bodies that a web page may send to another origin without asking that origin first."""
UTF_8 = ("utf-8", "utf8", "us-ascii")


class Denial(NamedTuple):
    """Why a request has no access."""

    status: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one server. Make them with ``Rules.of``."""

    digests: tuple[bytes, ...]
    """SHA-256 of each key, so that comparing takes the same time for all lengths. Empty: no key is needed."""
    names: frozenset[str]
    """Names of the server."""
    listed: frozenset[str]
    """Names that the user allows, also as the origin of a web page."""
    any_name: bool
    """Whether every name is allowed as ``Host``."""

    @classmethod
    def of(cls, host: str, keys: Sequence[str] = (), allowed_hosts: Sequence[str] = ()) -> Rules:
        """Make the rules of a server that listens on ``host``.

        Args:
            keys: Any one of these is needed; empty: none.
            allowed_hosts: Names, as ``names_in`` returns them; ``*``: any.
        """
        listed = frozenset(allowed_hosts) - {ANY}
        own = {plain_name(host), plain_name(socket.gethostname()), "localhost"} - {""}
        return cls(tuple(map(_digest, keys)), listed | own, listed, ANY in allowed_hosts)

    def host_refusal(self, header: str | None) -> Denial | None:
        """Refuse a name that is not this server's. An address is no name, so it is always allowed.

        ``header``: the request's ``Host``. None: the request has none, so no browser has sent it.
        """
        if not header:
            return None
        name = name_of(header)
        if name is not None and (self.any_name or name in self.names or _address(name) is not None):
            return None
        return Denial(
            403,
            "host_not_allowed",
            f"this server does not answer under the name {header[:200]!r}, because a web page may have made "
            "that name point to this machine: use the server's address or host name, or start it with "
            "--allowed-hosts NAME",
        )

    def page_refusal(
        self, method: str, host: str | None, origin: str | None, site: str | None, mode: str | None
    ) -> Denial | None:
        """Refuse a request that a web page of another origin has sent.

        Args:
            host, origin: The request's ``Host`` and ``Origin``.
            site, mode: Its ``Sec-Fetch-Site`` and ``Sec-Fetch-Mode``, which browsers send also where they
                send no ``Origin``.
        """
        if origin is None:
            follows_a_link = method == "GET" and mode == "navigate"
            if site != "cross-site" or follows_a_link:
                return None
        elif self._is_own(origin, host):
            return None
        shown = "another site" if origin is None else repr(origin[:200])
        return Denial(
            403,
            "origin_not_allowed",
            f"this server takes no requests from web pages of {shown}: send them from a program, or start "
            "the server with --allowed-hosts and the name of the page's host",
        )

    def _is_own(self, origin: str, host: str | None) -> bool:
        try:
            name = plain_name(urlsplit(origin).hostname or "")
        except ValueError:
            return False
        if not name:  # such as "null", the origin of a file or of a page in a sandbox
            return False
        served_as = name_of(host or "") or ""
        return name in self.listed or name == served_as or (_is_loopback(name) and _is_loopback(served_as))

    def key_refusal(self, header: str | None) -> Denial | None:
        """Refuse a request without one of the keys. ``header``: its ``Authorization``."""
        if not self.digests or self.key_number(header) is not None:
            return None
        if header is None:
            message = "this server wants a key: send it as 'Authorization: Bearer KEY'"
        else:
            message = "the key is not one of this server's keys"
        return Denial(401, "invalid_api_key", message)

    def key_number(self, header: str | None) -> int | None:
        """Return which key the request has; None: none of them. The time does not depend on the key."""
        scheme, _, given = (header or "").partition(" ")
        digest, found = _digest(given.strip()), None
        for number, expected in enumerate(self.digests):
            if hmac.compare_digest(expected, digest):
                found = number
        return found if scheme.lower() == "bearer" else None


def type_refusal(content_type: str | None) -> Denial | None:
    """Refuse a body by its ``Content-Type``: the types that a page can send, and other characters than UTF-8.

    Any other body is read as JSON, also one without a type. A page can send that as well, but a browser adds
    ``Origin``, which is checked.
    """
    if content_type is None or content_type == "application/json":
        return None
    media, *parameters = (part.strip().lower() for part in content_type.split(";"))
    charsets = [text.partition("=")[2].strip(" \"'") for text in parameters if text.startswith("charset=")]
    if media in SENT_BY_PAGES:
        problem = f"the body's type is {media}"
    elif not all(charset in UTF_8 for charset in charsets):
        problem = f"the body's character set is {charsets[0][:100]!r}"
    else:
        return None
    message = f"{problem}, but JSON in UTF-8 is wanted: send the header 'Content-Type: application/json'"
    return Denial(415, "unsupported_media_type", message)


def name_of(authority: str) -> str | None:
    """Return the name or address in ``name:port``, in small letters; None if it is neither.

    >>> name_of("[::1]:80"), name_of("LocalHost:10000"), name_of("a/b")
    ('::1', 'localhost', None)
    """
    match = _AUTHORITY.fullmatch(authority)
    return None if match is None else plain_name(match["name"])


def plain_name(name: str) -> str:
    """Return a name in small letters, without the brackets of an address and without the dot at the end."""
    return name.strip().strip("[]").rstrip(".").lower()


def keys_in(text: str) -> tuple[str, ...]:
    """Return the keys in a text that separates them by commas. The error does not show the text.

    Raises ValueError if one is empty, or could not be sent in a header.
    """
    keys = tuple(key.strip() for key in text.split(","))
    if not all(map(_KEY.fullmatch, keys)):
        raise ValueError(
            "has an empty key, or one with characters that are not printable: give one key, or several "
            "separated by commas"
        )
    return keys


def names_in(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the names in texts that separate them by commas; ports are left out.

    Raises ValueError if one is not the name or address of a host.

    >>> names_in(["gpu-box,Gpu-Box.example.org:10000", "*"])
    ('gpu-box', 'gpu-box.example.org', '*')
    """
    names = []
    for text in ",".join(texts).split(",") if texts else ():
        given = text.strip()
        name = given if _address(plain_name(given)) is not None else name_of(given)
        if name is None or (ANY in name and name != ANY):
            raise ValueError(
                f"has {given[:100]!r}: give names of hosts such as gpu-box.example.org, or * for any name"
            )
        names.append(plain_name(name))
    return tuple(names)


def exposure(address: str, has_key: bool) -> str | None:
    """Return the warning about a server without a key that other machines can reach; None: there is no need.

    ``address``: the one that it listens on.
    """
    if has_key or _is_loopback(plain_name(address)):
        return None
    where = "all of this machine's addresses" if address in ("0.0.0.0", "::") else address
    return (
        f"the server listens on {where} without a key: every program that can reach it can use this machine "
        "and read its statistics. Set FGBENCH_API_KEY, or listen on 127.0.0.1"
    )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_loopback(name: str) -> bool:
    address = _address(name)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return name == "localhost" if address is None else address.is_loopback
