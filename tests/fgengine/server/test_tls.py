"""The server's certificate: requests over https, and sentences about files that cannot be used."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from raw_http import Raw, post

from fgengine.config import EngineConfig
from fgengine.server.connections import Connections, Timeouts
from fgengine.server.listener import Listener
from fgengine.server.options import ServerOptions
from fgengine.server.serving import run
from fgengine.server.tls import server_context

AUTHORITY = trustme.CA()


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """The files of a certificate and of its key."""
    certificate = AUTHORITY.issue_cert("127.0.0.1", "localhost")
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    return str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")


@pytest.fixture
async def secure(served: Any, files: tuple[str, str]) -> AsyncIterator[tuple[str, Connections]]:
    """The URL of the server over TLS, and the connections of that port."""
    listening = socket.create_server(("127.0.0.1", 0))
    connections = Connections(20)
    listener = Listener(listening, served.runner, connections, server_context(*files))
    yield f"https://127.0.0.1:{listening.getsockname()[1]}", connections
    listener.close()


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


async def test_answers_and_streams_over_tls(served: Any, secure: tuple[str, Connections]) -> None:
    url, _ = secure
    for stream in (False, True):
        body = {"prompt": "abc", "max_tokens": 5, "stream": stream}
        async with served.session.post(url + "/v1/completions", json=body, ssl=trusting()) as response:
            assert response.status == 200
            assert b"abca" in (await response.read()).replace(b'", "', b"") or stream


async def test_a_client_that_leaves_over_tls_is_noticed(
    served: Any, secure: tuple[str, Connections], fake: Any
) -> None:
    raw = await Raw.to(secure[0], ssl=trusting(), server_hostname="127.0.0.1")
    raw.send(post("/v1/completions", {"prompt": [97, fake.WAIT], "max_tokens": 9}))
    await served.until(lambda: bool(served.engine.requests))
    raw.leave()
    await served.until(lambda: served.engine.aborted == ["cmpl-0"])


async def test_old_versions_of_tls_are_refused(secure: tuple[str, Connections]) -> None:
    context = trusting()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await Raw.to(secure[0], ssl=context, server_hostname="127.0.0.1")


async def test_plain_http_to_the_tls_port_does_no_harm(
    served: Any, secure: tuple[str, Connections], caplog: Any
) -> None:
    url, connections = secure
    for _ in range(10):
        raw = await Raw.to(url)
        raw.send(post("/v1/completions", {"prompt": "abc"}))
        with contextlib.suppress(ConnectionError):
            await raw.everything()
        raw.leave()
    await served.until(lambda: connections.counters.connections_open == 0)
    async with served.session.get(url + "/health", ssl=trusting()) as response:
        assert response.status == 200
    assert caplog.records == []


async def test_clients_that_never_finish_the_handshake_are_dropped(
    served: Any, secure: tuple[str, Connections]
) -> None:
    url, connections = secure
    connections.timeouts = Timeouts(head=0.5)
    silent = [await Raw.to(url) for _ in range(60)]  # the limit is 20
    async with served.session.get(url + "/health", ssl=trusting()) as response:
        assert response.status == 200
    await served.until(lambda: connections.counters.connections_open <= 1)
    for raw in silent:
        raw.leave()


def encrypt(file: str) -> None:
    key = serialization.load_pem_private_key(Path(file).read_bytes(), None)
    passphrase = serialization.BestAvailableEncryption(b"secret")
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    Path(file).write_bytes(key.private_bytes(*form, passphrase))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda cert, key: Path(cert).unlink(), "--ssl-certfile .*cert.pem cannot be read: No such file"),
        (lambda cert, key: Path(key).unlink(), "--ssl-keyfile .*key.pem cannot be read: No such file"),
        (lambda cert, key: Path(cert).write_text("hello"), "cert.pem contains no certificate in PEM format"),
        (
            lambda cert, key: Path(key).write_bytes(b"\xff\x00"),
            "key.pem contains no private key in PEM format",
        ),
        (lambda cert, key: encrypt(key), "--ssl-keyfile .*key.pem is protected by a passphrase"),
        (
            lambda cert, key: AUTHORITY.issue_cert("a.example").private_key_pem.write_to_path(key),
            "key.pem is not the key of the certificate in .*cert.pem",
        ),
        (
            lambda cert, key: Path(key).write_text(
                "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
            ),
            "cannot be used",
        ),
    ],
)
def test_files_that_cannot_be_used_are_told_in_a_sentence(
    files: tuple[str, str], spoil: Callable[[str, str], None], message: str
) -> None:
    spoil(*files)
    with pytest.raises(ValueError, match=message):
        server_context(*files)


def test_a_certificate_without_a_key_in_its_file(files: tuple[str, str]) -> None:
    with pytest.raises(
        ValueError, match="contains no private key in PEM format: give one with --ssl-keyfile"
    ):
        server_context(files[0], None)
    both = Path(files[0]).read_text() + Path(files[1]).read_text()
    Path(files[0]).write_text(both)
    assert server_context(files[0], None).minimum_version == ssl.TLSVersion.TLSv1_2


def test_the_server_reports_files_that_cannot_be_used_and_ends() -> None:
    lines: list[str] = []
    options = ServerOptions(port=0, ssl_certfile="missing.pem")
    assert run(EngineConfig(), options, Path, report=lines.append) == 1
    assert lines == ["--ssl-certfile missing.pem cannot be read: No such file or directory"]


def test_the_server_reports_too_few_open_files_and_ends() -> None:
    lines: list[str] = []
    assert run(EngineConfig(), ServerOptions(port=0, max_connections=2**20), Path, report=lines.append) == 1
    assert "--max-connections 1048576 needs" in lines[0]
