"""Fields that this server does not have: none that would change the answer is ignored."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from fgengine.server.fields import HARMLESS, NO_EFFECT
from fgengine.server.schemas import BadRequestError, ChatBody, CompletionBody, read_body


def read(**fields: Any) -> list[str]:
    """Read a body with these fields; return the names of those that are ignored with a word."""
    said: list[str] = []
    read_body(json.dumps({"prompt": "hi", **fields}).encode(), CompletionBody, said.append)
    return said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("prompt_logprobs", 1),
        ("truncate_prompt_tokens", 5),
        ("bad_words", ["a"]),
        ("allowed_token_ids", [1]),
        ("skip_special_tokens", False),
        ("priority", 3),
        ("reasoning_effort", "high"),
        ("use_beam_search", True),
        ("use_beam_search", 0),
        ("top_logprobs", 2),
    ],
)
def test_a_field_that_would_change_the_answer_is_refused(name: str, value: Any) -> None:
    with pytest.raises(BadRequestError, match=f"{name} is not supported: leave it out") as refused:
        read(**{name: value})
    assert refused.value.field == name


@pytest.mark.parametrize("name", [*NO_EFFECT])
def test_a_field_without_an_effect_is_accepted(name: str) -> None:
    for value in (None, *NO_EFFECT[name]):
        assert read(**{name: value}) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("temprature", "temperature"),
        ("max_token", "max_tokens"),
        ("top_n", "top_p"),
        ("stream_option", "stream_options"),
    ],
)
def test_a_misspelt_field_is_refused(name: str, meant: str) -> None:
    with pytest.raises(BadRequestError, match=f"there is no field '{name}': did you mean {meant}") as refused:
        read(**{name: 1})
    assert refused.value.field == name


def test_a_field_of_another_route_is_refused() -> None:
    with pytest.raises(BadRequestError, match="messages is a field of another route: leave it out"):
        read(messages=[])
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}).encode()
    with pytest.raises(BadRequestError, match="prompt is a field of another route"):
        read_body(body, ChatBody)


def test_the_newer_name_for_max_tokens_takes_precedence() -> None:
    def length(**fields: Any) -> int:
        body = read_body(json.dumps({"prompt": "hi", **fields}).encode(), CompletionBody)
        return body.params(body.wish(), max_tokens=16).max_tokens

    assert length() == 16
    assert length(max_tokens=3) == 3
    assert length(max_tokens=3, max_completion_tokens=5) == 5


def test_other_fields_are_ignored_with_a_word() -> None:
    assert read(**dict.fromkeys(HARMLESS, "x")) == []
    assert read(x_vendor=1, vendor_params={}) == ["x_vendor", "vendor_params"]


async def test_an_ignored_field_is_logged_once(served: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fgengine.server"):
        for _ in range(3):
            status, _ = await served.post("/v1/completions", {"prompt": "a", "x_once": 1})
            assert status == 200
    assert sum("x_once" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_an_unknown_model_is_a_404(served: Any, path: str) -> None:
    prompt = {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}
    del prompt["messages" if path == "/v1/completions" else "prompt"]
    status, answer = await served.post(path, {"model": "gpt-4", "max_tokens": 1, **prompt})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")
    for known in ("fake", None, ""):
        status, _ = await served.post(path, {"model": known, "max_tokens": 1, **prompt})
        assert status == 200
