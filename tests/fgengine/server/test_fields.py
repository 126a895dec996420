"""Fields that this server does not have: none that would change the answer is ignored."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import pytest

from fgengine.server.fields import HARMLESS, NO_EFFECT, OF_MESSAGES, OF_STREAM_OPTIONS
from fgengine.server.parsing import read_body
from fgengine.server.schemas import BadRequestError, ChatBody, CompletionBody


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


def read_chat(*messages: Any, **fields: Any) -> tuple[ChatBody, list[str]]:
    """Read a chat; return its body, and the names of the fields that are ignored with a word."""
    said: list[str] = []
    body = {"messages": list(messages) or [{"role": "user", "content": "hi"}], **fields}
    return read_body(json.dumps(body).encode(), ChatBody, said.append), said


def message(**fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": "hi", **fields}


@pytest.mark.parametrize("name", [*OF_MESSAGES])
def test_a_field_of_a_message_that_is_not_supported_is_refused_by_its_place(name: str) -> None:
    where = f"messages[1].{name}"
    with pytest.raises(BadRequestError, match=rf"messages\[1\].{name} is not supported: leave it") as refused:
        read_chat(message(), message(**{name: "x"}))
    assert refused.value.field == where
    assert refused.value.code is not None
    assert refused.value.code.startswith("unsupported_")
    for value in (None, *OF_MESSAGES[name]):
        assert read_chat(message(**{name: value}))[1] == []


@pytest.mark.parametrize("name", [*OF_STREAM_OPTIONS])
def test_stream_options_that_are_not_supported_are_refused(name: str) -> None:
    with pytest.raises(BadRequestError, match="leave it out or set it to false") as refused:
        read_chat(stream=True, stream_options={name: True})
    assert refused.value.field == f"stream_options.{name}"
    assert read_chat(stream_options={name: False, "include_usage": True})[1] == []
    assert read_chat(stream_options={name: None})[1] == []


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"messages": [message(contents="x")]}, "messages[0].contents", "did you mean content?"),
        ({"messages": [message(rolle="x")]}, "messages[0].rolle", "did you mean role?"),
        ({"messages": [message(tool_call="x")]}, "messages[0].tool_call", "did you mean tool_calls?"),
        (
            {"messages": [message(content=[{"type": "text", "text": "a", "texts": "b"}])]},
            "messages[0].content[0].texts",
            "did you mean text?",
        ),
        ({"stream_options": {"include_usages": True}}, "stream_options.include_usages", "include_usage?"),
        ({"messages": [message(content=None)]}, "messages[0].content", "give a text or a list of text parts"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content is missing"),
        ({"messages": [message(content=7)]}, "messages[0].content", "is 7, but it must be a text, a list or"),
        ({"messages": [message(name=7)]}, "messages[0].name", "is 7, but it must be a text or null"),
        ({"messages": ["hi"]}, "messages[0]", 'messages[0] is "hi", but it must be a JSON object'),
        ({"messages": [message(role="robot")]}, "messages[0].role", 'is "robot", but it must be system or'),
        (
            {"messages": [message(content=[{"type": "image_url", "image_url": {"url": "a"}}])]},
            "messages[0].content[0].type",
            'messages[0].content[0].type is "image_url", but it must be text',
        ),
        ({"stream_options": 3}, "stream_options", "is 3, but it must be a JSON object or null"),
        ({"stop": [1]}, "stop[0]", "stop[0] is 1, but it must be a text"),
        ({"temperature": "hot"}, "temperature", 'is "hot", but it must be a number or null'),
    ],
)
def test_a_wrong_field_inside_an_object_is_refused_in_words(
    fields: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(BadRequestError) as refused:
        read_chat(**{"messages": [message()], **fields})
    assert refused.value.field == field
    assert said in str(refused.value)
    assert "`" not in str(refused.value)


def test_other_fields_inside_objects_are_ignored_with_a_word() -> None:
    part = {"type": "text", "text": "hi", "cache_control": {}, "x_part": 1}
    _, said = read_chat(
        message(x_vendor=1, annotations=[]), message(content=[part]), stream_options={"x_option": 1}
    )
    assert said == ["stream_options.x_option", "messages[].x_vendor", "messages[].content[].x_part"]


def test_many_unknown_fields_inside_messages_are_refused_early() -> None:
    many = [message(**{f"x_{number:04}_{'y' * 50}": 1}) for number in range(4000)]
    for messages in (many, [message(**{f"x_{number}": 1 for number in range(4000)})]):
        started = time.process_time()
        with pytest.raises(BadRequestError, match="leave them out"):
            read_chat(*messages)
        assert time.process_time() - started < 0.2
    assert read_chat(*[message(x_vendor=1)] * 4000)[1] == ["messages[].x_vendor"]


def test_the_name_of_a_participant_is_given_to_the_template() -> None:
    body, said = read_chat(message(name="Ann"), message(name=None), message())
    assert said == []
    assert body.plain_messages() == [message(name="Ann"), message(), message()]


async def test_a_template_can_show_the_name_of_a_participant(served: Any) -> None:
    sent = [message(name="Ann"), message()]
    _, answer = await served.post("/tokenize", {"messages": sent})
    assert bytes(answer["tokens"]) == b"<user Ann>hi<user>hi<assistant>"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_length_out_of_range_is_reported_by_its_own_name(served: Any, name: str) -> None:
    status, answer = await served.post("/v1/chat/completions", {"messages": [message()], name: 0})
    assert (status, answer["error"]["param"]) == (400, name)
    assert answer["error"]["message"] == f"{name} must be at least 1, not 0"


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


def test_a_body_with_very_many_unknown_fields_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name would be compared with all known ones, which takes a second for 2,000 names."""
    monkeypatch.setattr("fgengine.server.fields.get_close_matches", None)
    body = json.dumps({"prompt": "a"} | {f"zq{number}": 1 for number in range(2000)})
    with pytest.raises(BadRequestError, match=r"has 2000 fields that .*, such as 'zq0'"):
        read_body(body.encode(), CompletionBody)


def test_very_many_biases_are_refused_before_they_are_looked_at() -> None:
    body = json.dumps({"prompt": "a", "logit_bias": {f"x{number}": 1 for number in range(1025)}})
    read = read_body(body.encode(), CompletionBody)
    with pytest.raises(BadRequestError, match="logit_bias has 1025 tokens: give at most 1024"):
        read.params(read.wish(), max_tokens=1)


MANY_DIGITS = "9" * 5000


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"prompt": "a", "temperature": 1e999}', "temperature"),
        (f'{{"prompt": "a", "seed": -{MANY_DIGITS}}}', "seed"),
        ('{"prompt": "a", "logit_bias": {"5": -1e999}, "n": 1}', "logit_bias"),
        (f'{{"prompt": [1, {MANY_DIGITS}]}}', "prompt"),
        ('{"prompt": "a", "n": 1e999, "n": 1}', None),
        (f"[{MANY_DIGITS}]", None),
        ("1e999", None),
        ('{"temperature": 1e999, "prompt": ', None),
        ('{"temperature": 1e999, "prompt": ' + "[" * 100_000, None),
    ],
    ids=lambda value: None if value is None else value[:40],
)
def test_a_number_that_is_too_large_is_named(body: str, field: str | None) -> None:
    message = f"^{field or 'the body'} has a number that is too large: give a smaller one$"
    with pytest.raises(BadRequestError, match=message) as error:
        read_body(body.encode(), CompletionBody)
    assert (error.value.field, error.value.code) == (field, "invalid_value")
