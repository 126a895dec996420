"""The server's certificate."""

from __future__ import annotations

import ssl
from pathlib import Path

_ENCRYPTED = "is protected by a passphrase: give a key without one (openssl pkey -in KEY -out NEW)"


def server_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    """Return a context for TLS 1.2 and later. ``keyfile``: None if the key is in ``certfile``.

    Raises ValueError with a sentence if a file cannot be read or does not contain what it should.
    """
    key_option, key = ("--ssl-certfile", certfile) if keyfile is None else ("--ssl-keyfile", keyfile)
    if "-----BEGIN CERTIFICATE-----" not in _text("--ssl-certfile", certfile):
        raise ValueError(f"--ssl-certfile {certfile} contains no certificate in PEM format")
    if "PRIVATE KEY-----" not in _text(key_option, key):
        hint = ": give one with --ssl-keyfile" if keyfile is None else ""
        raise ValueError(f"{key_option} {key} contains no private key in PEM format{hint}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2

    def passphrase() -> str:
        raise ValueError(f"{key_option} {key} {_ENCRYPTED}")

    try:
        context.load_cert_chain(certfile, keyfile, password=passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"{key_option} {key} is not the key of the certificate in {certfile}") from None
        raise ValueError(
            f"--ssl-certfile {certfile} and {key_option} {key} cannot be used: {error}"
        ) from None
    return context


def _text(option: str, file: str) -> str:
    try:
        return Path(file).read_text("ascii", "replace")
    except OSError as error:
        raise ValueError(f"{option} {file} cannot be read: {error.strerror}") from None
