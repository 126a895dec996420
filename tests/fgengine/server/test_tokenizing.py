"""POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

import pytest


async def test_a_prompt_and_its_text_again(served: Any, fake: Any) -> None:
    status, answer = await served.post("/tokenize", {"prompt": "hé"})
    assert status == 200
    ids = list("hé".encode())
    assert answer == {"count": 3, "max_model_len": fake.MAX_MODEL_LEN, "tokens": ids, "token_strs": None}
    assert await served.post("/detokenize", {"model": "fake", "tokens": ids}) == (200, {"prompt": "hé"})


async def test_the_texts_of_the_tokens_are_given_if_asked_for(served: Any) -> None:
    _, answer = await served.post("/tokenize", {"prompt": "ab", "return_token_strs": True})
    assert answer["token_strs"] == ["a", "b"]


async def test_a_chat_has_the_tokens_that_its_completion_counts(served: Any) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    _, answer = await served.post("/tokenize", chat)
    assert bytes(answer["tokens"]) == b"<user>hi<assistant>"
    _, completion = await served.post("/v1/chat/completions", {**chat, "max_tokens": 1})
    assert completion["usage"]["prompt_tokens"] == answer["count"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "promt": "a"}, "promt"),
        ("/tokenize", {"prompt": "a", "max_tokens": 5}, "max_tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/detokenize", {"tokens": [1] * 5000}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ],
)
async def test_what_is_wrong_is_named(served: Any, path: str, body: Any, field: str) -> None:
    status, answer = await served.post(path, body)
    assert (status, answer["error"]["param"]) == (400, field)


async def test_another_model_is_a_404(served: Any) -> None:
    assert (await served.post("/tokenize", {"prompt": "a", "model": "gpt-4"}))[0] == 404
    assert (await served.post("/detokenize", {"tokens": [1], "model": "gpt-4"}))[0] == 404
