"""POST /generate, in FastServe's form and in that of vLLM's old api_server."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest

from fgengine.server.options import ServerOptions

ARTIFACT_BODY = {
    "prompt": "ab",
    "n": 1,
    "best_of": 1,
    "use_beam_search": False,
    "temperature": 1.0,
    "top_p": 1.0,
    "max_tokens": 3,
    "ignore_eos": True,
}
"""The body that the artifact's client posts."""
VLLM = ServerOptions(generate_form="vllm")
in_vllms_form = pytest.mark.parametrize("server_options", [VLLM])


async def test_fastserve_streams_the_output_so_far(served: Any) -> None:
    answers = [json.loads(m) for m in await served.stream("/generate", ARTIFACT_BODY, b"\0")]
    texts = [answer["text"] for answer in answers]
    assert all(text == "aba"[: len(text)] for text in texts)  # tokens that arrive together are one message
    assert texts[-1] == "aba"
    assert all(set(answer) == {"text"} for answer in answers[:-1])
    assert set(answers[-1]) == {"text", "usage", "fgengine"}
    assert answers[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


async def test_fastserve_answers_with_prompt_and_output(served: Any) -> None:
    status, answer = await served.post("/generate", ARTIFACT_BODY)
    assert (status, answer["text"]) == (200, "ababa")
    assert answer["fgengine"]["preemptions"] == 0


@in_vllms_form
async def test_vllm_streams_lists_that_begin_with_the_prompt(served: Any) -> None:
    answers = [json.loads(m) for m in await served.stream("/generate", ARTIFACT_BODY, b"\0")]
    texts = [answer["text"] for answer in answers]
    assert all(text in (["aba"], ["abab"], ["ababa"]) for text in texts)
    assert texts[-1] == ["ababa"]
    assert set(answers[-1]) == {"text", "usage", "fgengine"}


@in_vllms_form
async def test_vllm_answers_with_a_list(served: Any) -> None:
    status, answer = await served.post("/generate", ARTIFACT_BODY)
    assert (status, answer["text"]) == (200, ["ababa"])


@in_vllms_form
async def test_vllm_gives_several_answers(served: Any) -> None:
    body = {**ARTIFACT_BODY, "n": 2}
    _, answer = await served.post("/generate", body)
    assert answer["text"] == ["ababa", "ababa"]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
    streamed = [json.loads(m) for m in await served.stream("/generate", body, b"\0")]
    assert streamed[-1]["text"] == ["ababa", "ababa"]


@pytest.mark.parametrize("field", ["prompt", "prompt_token_ids"])
async def test_a_prompt_may_be_token_ids(served: Any, field: str) -> None:
    body = {**ARTIFACT_BODY, "prompt": None, field: [104, 105]}
    _, answer = await served.post("/generate", body)
    assert answer["text"] == "hihih"


async def test_characters_are_not_split(served: Any) -> None:
    answers = await served.stream("/generate", {"prompt": "é", "max_tokens": 3}, b"\0")
    texts = [json.loads(m)["text"] for m in answers]
    assert all(text in ("", "é", "é\ufffd") for text in texts)
    assert texts[-1] == "é\ufffd"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 2}, "--generate-form vllm"),
        ({"best_of": 2}, "best_of is not supported"),
        ({"use_beam_search": True}, "use_beam_search is not supported"),
        ({"prompt": None}, "prompt_token_ids"),
        ({"prompt_token_ids": [1]}, "either"),
        ({"max_tokens": 10_000}, "more than 4096"),
        ({"model": "gpt-4"}, "does not exist"),
    ],
)
async def test_unsupported_and_invalid_bodies_are_refused(
    served: Any, change: dict[str, Any], message: str
) -> None:
    status, answer = await served.post("/generate", {**ARTIFACT_BODY, **change, "stream": True})
    assert status == (404 if "model" in change else 400)
    assert message in answer["error"]["message"]


class LongWords:
    """A detokenizer whose tokens have long texts."""

    TEXT = "x" * 200

    def add(self, token: int) -> str:
        return self.TEXT

    def finish(self) -> str:
        return ""


@pytest.mark.parametrize("server_options", [VLLM, ServerOptions()])
async def test_for_a_late_reader_only_the_newest_text_is_kept(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All messages together would be 900 MB."""
    monkeypatch.setattr(served.service.codec, "detokenizer", lambda prompt=(): LongWords())
    served.engine.step_seconds = 0.0002
    tokens = 3000
    body = json.dumps({"prompt": "ab", "max_tokens": tokens, "stream": True}).encode()
    address = urlsplit(served.url)
    client = socket.socket()
    client.connect((address.hostname, address.port))
    client.sendall(
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    client.setblocking(False)
    await served.until(lambda: len(served.engine.users) == 1 and not served.engine.requests)
    reader, writer = await asyncio.open_connection(sock=client)
    await asyncio.sleep(0.05)
    raw = await reader.read()
    writer.close()
    assert len(raw) < 40 * 2**20
    last = raw[: raw.rindex(b"\0")].rpartition(b"\0")[2].split(b"\r\n")[-1]
    text = json.loads(last)["text"]
    length = tokens * len(LongWords.TEXT)
    assert text in (["ab" + "x" * length], "x" * length)


@pytest.mark.parametrize("ids", [[-1], [2**32], [2**63 - 1], [-(2**63), 5]])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
async def test_token_ids_that_no_model_has_are_refused(served: Any, path: str, ids: list[int]) -> None:
    status, answer = await served.post(path, {"prompt": ids})
    assert status == 400
    assert "token ids" in answer["error"]["message"]
