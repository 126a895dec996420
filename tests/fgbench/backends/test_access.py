"""How a running server is reached: with a key, and with a certificate that the client trusts."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trustme

from fgbench.backends.attached import Attached
from fgbench.backends.backend import BackendError
from fgbench.client.endpoints import Wishes, endpoint_called
from fgbench.client.sending import Target, run_async, run_load
from fgbench.spec.access import Access
from fgbench.spec.client import ClientSpec
from fgbench.workload.workload import RequestSpec


class Handler(BaseHTTPRequestHandler):
    """Answers chats and completions of two tokens."""

    bodies: ClassVar[list[Any]] = []

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        if self.path == "/v1/models":
            self.wfile.write(b'{"data": [{"id": "m"}]}')

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        key = '"delta": {"content": "x"}' if "chat" in self.path else '"text": "x"'
        self.send_response(200)
        self.end_headers()
        if "chat" in self.path:
            self.wfile.write(b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n')
        for _ in range(2):
            self.wfile.write(f'data: {{"choices": [{{{key}}}]}}\n\n'.encode())
        self.wfile.write(b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}\n\n')
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """An authority that no system trusts."""
    return trustme.CA()


@pytest.fixture
def serve(authority: trustme.CA) -> Iterator[Callable[[bool], str]]:
    """Return a function that starts a server, with or without TLS, and returns its host and port."""
    started: list[ThreadingHTTPServer] = []
    Handler.bodies.clear()

    def make(secure: bool) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if secure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        started.append(server)
        return f"127.0.0.1:{server.server_port}"

    yield make
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("scheme", "secure", "message"),
    [
        (
            "https",
            True,
            "its certificate is not trusted .* --ca-file, or accept any certificate with --insecure",
        ),
        ("http", True, "it speaks TLS: write https://"),
        ("https", False, "TLS fails .* write http:// in its URL"),
    ],
)
def test_a_tls_problem_is_reported_at_once(
    serve: Callable[[bool], str], tmp_path: Path, scheme: str, secure: bool, message: str
) -> None:
    attached = Attached(f"{scheme}://{serve(secure)}")
    began = time.monotonic()
    with pytest.raises(BackendError, match=message):
        attached.start(tmp_path / "log", lambda line: None)
    assert time.monotonic() - began < 10.0


@pytest.mark.parametrize("insecure", [True, False])
def test_a_certificate_that_is_accepted(
    serve: Callable[[bool], str], authority: trustme.CA, tmp_path: Path, insecure: bool
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    access = Access(insecure=True) if insecure else Access(ca_file=tmp_path / "ca.pem")
    url = f"https://{serve(True)}"
    ready = Attached(url, access=access).start(tmp_path / "log", lambda line: None)
    records: list[Any] = []
    request = RequestSpec(0, 0.0, "hello", 9, 2)
    target = Target(url, ready.model, endpoint_called("completions"), 10.0, access)
    assert run_async(run_load([request], target, records.append)) == "complete"
    assert records[0].ok


def test_a_chat_sends_messages_and_counts_its_tokens(serve: Callable[[bool], str]) -> None:
    records: list[Any] = []
    endpoint = endpoint_called("chat", Wishes({"temperature": 0.5, "top_k": 3}))
    target = Target(f"http://{serve(False)}", "m", endpoint, 10.0)
    run_async(run_load([RequestSpec(0, 0.0, "hello", 1, 2)], target, records.append))
    assert records[0].ok
    assert len(records[0].token_times) == 2
    (body,) = Handler.bodies
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert (body["temperature"], body["top_k"], body["max_tokens"]) == (0.5, 3, 2)
    with pytest.raises(ValueError, match="--endpoint chat sends texts, and this dataset has only lengths"):
        endpoint.body(RequestSpec(0, 0.0, (1, 2), 2, 2), "m")


def test_a_key_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")

    def sent(url: str, **options: Any) -> dict[str, str]:
        return dict(Attached(url, access=ClientSpec(**options).access).access.headers)

    assert sent("http://127.0.0.1:1") == sent("https://example.org") == {"Authorization": "Bearer sk-1"}
    assert sent("http://example.org") == {}  # never in the clear to another machine
    assert sent("http://127.0.0.1:1", api_key="sk-2") == {"Authorization": "Bearer sk-2"}
    assert sent("http://127.0.0.1:1", header=("authorization: none",)) == {"authorization": "none"}
    assert "sk-" not in repr(Attached("http://127.0.0.1:1").access)
    assert ClientSpec().needs_url == ""  # the variable may be meant for other programs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra_body": "{"}, "--extra-body is not JSON"),
        ({"extra_body": "[1]"}, "--extra-body must be a JSON object"),
        ({"ca_file": Path("nothing.pem")}, "--ca-file nothing.pem cannot be used"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClientSpec(**options)
