"""What a running server reports about itself, so that two servers at one URL can be distinguished."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fgbench.backends.identity import _settled, ask_identity, identity_in_words

MODELS = {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 2048, "created": 1764000000}]}
VLLM: dict[str, Any] = {"/version": {"version": "0.32.0"}, "/v1/models": MODELS}
SGLANG: dict[str, Any] = {
    "/v1/models": {"data": [{"id": "m", "owned_by": "sglang"}]},
    "/get_server_info": {
        "schedule_policy": "fcfs",
        "max_running_requests": 16,
        "random_seed": 8123,
        "nccl_port": 3344,
        "api_key": "secret",
        "last_gen_throughput": 12.5,
        "internal_states": [{}],
        "disable_radix_cache": False,
    },
}
FASTGEN: dict[str, Any] = {
    "/version": {"version": "0.1.0"},
    "/v1/models": {"data": [{"id": "m", "owned_by": "fgengine", "max_model_len": 512}]},
    "/server_info": {"version": "0.1.0", "settings": {"policy": "srpt", "max_batch_size": 16}},
}


@contextmanager
def served(pages: dict[str, Any]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(pages.get(self.path, {})).encode()
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("pages", "reported", "words"),
    [
        (VLLM, {"version": "0.32.0", "owned_by": "vllm", "max_model_len": 2048}, "vllm 0.32.0"),
        (
            SGLANG,
            {
                "owned_by": "sglang",
                "schedule_policy": "fcfs",
                "max_running_requests": 16,
                "disable_radix_cache": False,
            },
            "sglang",
        ),
        (
            FASTGEN,
            {
                "version": "0.1.0",
                "owned_by": "fgengine",
                "max_model_len": 512,
                "policy": "srpt",
                "max_batch_size": 16,
            },
            "fgengine 0.1.0",
        ),
        ({}, {}, ""),
    ],
)
def test_a_server_is_asked_for_what_stays_the_same_at_each_start(
    pages: dict[str, Any], reported: dict[str, Any], words: str
) -> None:
    """Ports, seeds, counters and secrets are left out."""
    with served(pages) as url:
        found = ask_identity(url)
    assert found == reported
    assert identity_in_words(found) == words


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        *(
            (name, True)
            for name in ("offloading", "queue_timeout", "load_format", "num_host_blocks", "policy")
        ),
        *((name, True) for name in ("max_running_requests", "sharded")),
        *(
            (name, False)
            for name in ("seed", "port", "start_time", "api_key", "num_running_reqs", "model_path")
        ),
    ],
)
def test_only_values_that_change_from_start_to_start_are_left_out(name: str, kept: bool) -> None:
    assert (name in _settled({name: 1})) is kept
