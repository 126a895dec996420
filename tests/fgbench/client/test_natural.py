"""Answers that the model ends, servers that count no tokens, and prompts of words in place of token ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from fgbench.backends.attached import Attached
from fgbench.backends.probe import base_url
from fgbench.benchmark import execute_run
from fgbench.client.answer import Answer
from fgbench.client.endpoints import NO_WISHES, Wishes, endpoint_called
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import summarize
from fgbench.spec.client import ClientSpec
from fgbench.spec.load import Load, LoadSpec
from fgbench.workload.build import build_workload
from fgbench.workload.conversations import Conversations
from fgbench.workload.datasets import Synthetic
from fgbench.workload.lengths import Between
from fgbench.workload.texts import TextPair
from fgbench.workload.words import single_token_words
from fgbench.workload.workload import RequestSpec
from fgengine.config import EngineConfig

DONE = "data: [DONE]\n\n"


def event(text: str, finish: str | None = None) -> str:
    return f"data: {json.dumps({'choices': [{'text': text, 'finish_reason': finish}]})}\n\n"


def usage(tokens: int) -> str:
    counted = {"prompt_tokens": 2, "completion_tokens": tokens}
    return f"data: {json.dumps({'choices': [], 'usage': counted})}\n\n"


def answered(*stream: str, wishes: Wishes = NO_WISHES, counts: bool = False) -> RequestRecord:
    """Return the record of an answer to a request for 4 tokens; a counter counts words."""
    answer = Answer(
        RequestSpec(0, 0.0, (1, 2), 2, 4),
        endpoint_called("completions", wishes),
        0.0,
        (lambda text: len(text.split())) if counts else None,
    )
    for i, piece in enumerate(stream):
        answer.feed(piece.encode(), 0.1 * (i + 1))
    answer.close(1.0)
    return answer.record(1.0)


NATURAL = Wishes(natural_lengths=True)
COUNTED = Wishes(natural_lengths=True, keeps_text=True)


def test_an_answer_that_the_model_ends_is_complete() -> None:
    stream = [event("a"), event("b", "stop"), usage(2), DONE]
    record = answered(*stream, wishes=NATURAL)
    assert record.ok
    assert (record.asked_tokens, record.output_tokens) == (4, 2)
    assert answered(*stream).error == "short: asked for 4 tokens, got 2"
    too_long = answered(*(event("a") for _ in range(5)), usage(5), DONE, wishes=NATURAL)
    assert too_long.error == "long: asked for 4 tokens, got 5"


def test_an_answer_may_be_empty_if_the_model_ends_it_at_once() -> None:
    record = answered(event("", "stop"), usage(0), DONE, wishes=NATURAL)
    assert record.ok
    assert record.output_tokens == 0
    summary = summarize([record], offered_rate=1.0)
    assert (summary.ok, summary.output_tokens, summary.figure("output_length")) == (1, 0, 0.0)
    assert summary.figure("normalized_latency") is None
    cut = answered('data: {"choices": []}\n\n', DONE, wishes=NATURAL)
    assert cut.error == "protocol: the answer holds no output"


def test_an_answer_of_the_requested_length_needs_no_usage() -> None:
    record = answered(event("a"), event("b"), event("c"), event("d", "length"), DONE)
    assert record.ok
    assert record.output_tokens == 4


def test_the_tokenizer_counts_the_tokens_of_an_answer_without_usage() -> None:
    stream = [event("one "), event("two\\ud83d".replace("\\\\", "\\")), event(" three", "stop"), DONE]
    record = answered(*stream, wishes=COUNTED, counts=True)
    assert record.ok
    assert (record.output_tokens, len(record.token_times)) == (3, 3)
    unknown = answered(*stream, wishes=NATURAL)
    assert unknown.error is not None
    assert unknown.error.endswith("give the model's tokenizer with --tokenizer")
    forced = answered(*stream)
    assert forced.error is not None
    assert forced.error.endswith("so try --natural-lengths with --tokenizer")


def test_bodies_force_no_length_if_lengths_are_natural() -> None:
    body = json.loads(endpoint_called("completions", NATURAL).body(RequestSpec(0, 0.0, (5,), 1, 30), "m"))
    assert body["max_tokens"] == 30
    assert "ignore_eos" not in body
    with pytest.raises(ValueError, match="--natural-lengths does not work with --endpoint generate"):
        endpoint_called("generate", NATURAL)


WORDS = (" cat", " dog", " cow")


@pytest.mark.parametrize(
    ("endpoint", "sent"),
    [
        ("completions", {"prompt": " dog cat"}),
        ("chat", {"messages": [{"role": "user", "content": " dog cat"}]}),
        ("generate", {"prompt": " dog cat"}),
    ],
)
def test_words_are_sent_in_place_of_token_ids(endpoint: str, sent: dict[str, Any]) -> None:
    made = endpoint_called(endpoint, Wishes(words=WORDS))
    assert json.loads(made.body(RequestSpec(0, 0.0, (1, 0), 2, 3), "m")).items() >= sent.items()


def test_words_have_one_token_each(tmp_path: Path) -> None:
    words = ["the", "cat", "##s", "a", "Berlin", "house", "<s>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert single_token_words(tmp_path) == (" the", " cat", " house")
    letters = Tokenizer(models.WordLevel({"a": 0, "<s>": 1}, unk_token="<s>"))
    letters.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="has no words of one token, so --send-text cannot"):
        single_token_words(tmp_path)


def test_prompts_of_words_differ_between_loads_but_not_in_their_fingerprint() -> None:
    lengths = Synthetic(Between(6, 6), Between(2, 2))
    made = [build_workload(lengths, rate=rate, num_prompts=3, num_words=50) for rate in (1.0, 2.0)]
    prompts = [[request.prompt for request in workload.requests] for workload in made]
    assert prompts[0] != prompts[1]
    assert all(0 <= position < 50 for prompt in prompts[0] for position in prompt)
    assert made[0].prompts_fingerprint == made[1].prompts_fingerprint


def test_natural_lengths_are_another_workload() -> None:
    lengths = Synthetic(Between(6, 6), Between(2, 2))
    forced, natural = (
        build_workload(lengths, rate=1.0, num_prompts=3, natural_lengths=natural) for natural in (False, True)
    )
    assert forced.fingerprint != natural.fingerprint
    assert "natural_lengths" not in forced.describe()
    assert natural.describe()["natural_lengths"] is True


def test_only_a_tokenizer_that_the_user_names_counts_tokens(tmp_path: Path) -> None:
    spec = LoadSpec(natural_lengths=True)
    assert spec.to_load(ClientSpec(), EngineConfig()).tokenizer == ""
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    named = EngineConfig(tokenizer=str(tmp_path))
    assert spec.to_load(ClientSpec(), named).tokenizer == str(tmp_path)
    assert LoadSpec().to_load(ClientSpec(), named).tokenizer == ""


@pytest.mark.parametrize("option", [{"natural_lengths": True}, {"max_concurrency": 4}])
def test_a_simulation_refuses_what_only_a_server_has(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs a real server, and this is a simulation"):
        LoadSpec(**option).check_simulated()
    LoadSpec().check_simulated()


@pytest.mark.parametrize(
    "path",
    ["", "/", "/v1", "/v1/", "/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/completions//"],
)
def test_a_url_may_end_with_the_path_of_an_api(path: str) -> None:
    assert base_url(f"http://host:1{path}") == "http://host:1"
    assert base_url(f"http://host:1/proxy{path}") == "http://host:1/proxy"


def chatted(*deltas: dict[str, Any], tokens: int | None = None, finish: str = "stop") -> RequestRecord:
    """Return the record of a chat with one message per delta, 0.1 s apart, with natural lengths."""
    chat = endpoint_called("chat", COUNTED)
    answer = Answer(RequestSpec(0, 0.0, "hi", 1, 20), chat, 0.0, lambda text: len(text.split()))
    for i, delta in enumerate(deltas):
        answer.feed(f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n".encode(), 0.1 * (i + 1))
    ending: dict[str, Any] = {"choices": [{"delta": {}, "finish_reason": finish}]}
    if tokens is not None:
        ending["usage"] = {"prompt_tokens": 9, "completion_tokens": tokens}
    answer.feed(f"data: {json.dumps(ending)}\n\n{DONE}".encode(), 1.0)
    answer.close(1.0)
    return answer.record(1.0)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "content"])
def test_thoughts_of_a_chat_are_output(field: str) -> None:
    record = chatted({"role": "assistant", "content": ""}, {field: "a"}, {field: "b"}, tokens=2)
    assert record.ok
    assert (record.first_token, record.last_token) == (0.2, 0.3)


def test_calls_of_tools_are_output() -> None:
    calls = [{"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]} for _ in range(3)]
    record = chatted(*calls, tokens=3)
    assert record.ok
    assert record.first_token == 0.1


def test_all_texts_of_a_message_are_counted() -> None:
    assert chatted({"content": "one two", "reasoning_content": ""}).output_tokens == 2
    assert chatted({"content": "one two", "reasoning": " three"}).output_tokens == 3


def test_tokens_without_output_are_an_error() -> None:
    assert chatted({"role": "assistant"}, tokens=5).error == "protocol: the answer holds no output"


@pytest.mark.parametrize("reason", ["abort", "error", "Cancelled"])
def test_an_answer_that_the_server_broke_off_failed(reason: str) -> None:
    record = chatted({"content": "a"}, tokens=1, finish=reason)
    assert record.error == f"server: it broke the answer off ({reason})"


def test_a_count_below_zero_counts_nothing() -> None:
    assert chatted({"content": "one two"}, tokens=-1).output_tokens == 2


@pytest.mark.parametrize("field", ["max_tokens", "prompt", "stream", "n"])
def test_extra_fields_do_not_change_what_is_measured(field: str) -> None:
    with pytest.raises(ValueError, match=f"--extra-body must not hold {field}, which fgbench sets"):
        ClientSpec(extra_body=json.dumps({field: 1}))


def test_extra_fields_are_json() -> None:
    with pytest.raises(ValueError, match="NaN is no number in JSON"):
        ClientSpec(extra_body='{"a": NaN}')


def test_the_model_of_another_server_needs_no_tokenizer_here() -> None:
    named = EngineConfig(model="organization/model-that-is-not-here")
    assert LoadSpec(natural_lengths=True).to_load(ClientSpec(), named).tokenizer == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load": {"endpoint": "chat"}}, "--endpoint chat sends texts, and this dataset has only lengths"),
        (
            {"load": {"endpoint": "generate", "natural_lengths": True}},
            "--natural-lengths does not work with --endpoint generate",
        ),
    ],
)
def test_requests_that_cannot_be_made_are_refused_before_the_server_starts(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    lengths = Synthetic(Between(6, 6), Between(2, 2))
    with pytest.raises(ValueError, match=message):
        execute_run(Attached("http://127.0.0.1:1"), lengths, Load(**options["load"]), results=tmp_path)
    assert not list(tmp_path.iterdir())


def test_texts_are_not_made_of_words(tmp_path: Path) -> None:
    talks = Conversations("talks", [[TextPair("", "hi", "yes")]], lambda texts: [1] * len(texts))
    with pytest.raises(ValueError, match="--send-text is for datasets of lengths, and talks has texts"):
        execute_run(Attached("http://127.0.0.1:1"), talks, Load(words=WORDS), results=tmp_path)


def test_words_are_text() -> None:
    ids, text = RequestSpec(0, 0.0, (1, 0), 2, 3), RequestSpec(0, 0.0, "hi", 1, 3)
    assert [NO_WISHES.is_text(ids), NO_WISHES.is_text(text)] == [False, True]
    assert Wishes(words=WORDS).is_text(ids)
