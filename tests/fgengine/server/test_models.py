"""The names of the model, and the routes about it."""

from __future__ import annotations

from typing import Any

import pytest

from fgengine.server.options import ServerOptions

BODY = {"prompt": "a", "max_tokens": 1}


def test_names_are_repeated_or_separated_by_commas() -> None:
    assert ServerOptions(served_model_name=("a, b", "c", ",")).model_names == ("a", "b", "c")
    assert ServerOptions().model_names == ()


@pytest.mark.parametrize("server_options", [ServerOptions(served_model_name=("mine,ours/large",))])
async def test_given_names_take_the_place_of_the_models_own(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, listed = await served.get("/v1/models")
    assert [model["id"] for model in listed["data"]] == ["mine", "ours/large"]
    for asked in ("mine", "ours/large", None):
        status, answer = await served.post("/v1/completions", {**BODY, "model": asked})
        assert (status, answer["model"]) == (200, "mine")
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    chunks = await served.stream("/v1/chat/completions", chat, b"\n\n")
    assert b'"model":"mine"' in chunks[0]
    status, answer = await served.post("/v1/completions", {**BODY, "model": "fake"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "fake" not in answer["error"]["message"].partition("this server")[2]
    assert (await served.get("/v1/models/ours/large"))[1]["id"] == "ours/large"
    assert (await served.get("/v1/models/fake"))[0] == 404


async def test_a_folder_is_known_by_its_last_part_too(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from msgspec.structs import replace

    path = "/models/here/small"
    served.service.engine.model = replace(served.service.engine.model, model_name=path)
    for asked in (path, "small", None):
        status, answer = await served.post("/v1/completions", {**BODY, "model": asked})
        assert (status, answer["model"]) == (200, path)
    assert (await served.post("/v1/completions", {**BODY, "model": "here/small"}))[0] == 404
    assert (await served.get("/v1/models/small"))[1]["id"] == path


async def test_the_tokenizer_of_the_model_can_be_found(served: Any) -> None:
    """`vllm bench serve` without --model loads the tokenizer of ``root``."""
    _, listed = await served.get("/v1/models")
    assert listed["data"][0]["root"] == served.engine.model_name
