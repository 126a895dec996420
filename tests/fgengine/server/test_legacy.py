"""POST /generate, in the format of FastServe and vLLM's old api_server."""

from __future__ import annotations

import json
from typing import Any

import pytest

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


async def test_a_stream_repeats_the_complete_text_so_far(served: Any) -> None:
    answers = [json.loads(m) for m in await served.stream("/generate", ARTIFACT_BODY, b"\0")]
    assert [answer["text"] for answer in answers] == [["aba"], ["abab"], ["ababa"]]
    assert [set(answer) for answer in answers] == [{"text"}, {"text"}, {"text", "usage", "fgengine"}]
    assert answers[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


async def test_an_answer_without_streaming(served: Any) -> None:
    status, answer = await served.post("/generate", ARTIFACT_BODY)
    assert (status, answer["text"]) == (200, ["ababa"])
    assert answer["fgengine"]["preemptions"] == 0


@pytest.mark.parametrize("field", ["prompt", "prompt_token_ids"])
async def test_a_prompt_may_be_token_ids(served: Any, field: str) -> None:
    body = {**ARTIFACT_BODY, "prompt": None, field: [104, 105]}
    _, answer = await served.post("/generate", body)
    assert answer["text"] == ["hihih"]


async def test_characters_are_not_split(served: Any) -> None:
    answers = await served.stream("/generate", {"prompt": "é", "max_tokens": 3}, b"\0")
    assert [json.loads(m)["text"][0] for m in answers] == ["é", "éé", "éé\ufffd"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 2}, "n is not supported"),
        ({"best_of": 2}, "best_of is not supported"),
        ({"use_beam_search": True}, "use_beam_search is not supported"),
        ({"prompt": None}, "prompt_token_ids"),
        ({"prompt_token_ids": [1]}, "either"),
        ({"max_tokens": 10_000}, "more than 4096"),
    ],
)
async def test_unsupported_and_invalid_bodies_answer_400(
    served: Any, change: dict[str, Any], message: str
) -> None:
    status, answer = await served.post("/generate", {**ARTIFACT_BODY, **change, "stream": True})
    assert status == 400
    assert message in answer["error"]["message"]


@pytest.mark.parametrize("ids", [[-1], [2**32], [2**63 - 1], [-(2**63), 5]])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
async def test_token_ids_that_no_model_has_are_refused(served: Any, path: str, ids: list[int]) -> None:
    status, answer = await served.post(path, {"prompt": ids})
    assert status == 400
    assert "token ids" in answer["error"]["message"]
