"""Log probabilities: the lists of completions and chats, echo, and which tokens are in the lists."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer

from fgengine.server.logprobs import listed_prompt
from fgengine.server.messages import PromptToken
from fgengine.text import TextCodec

SSE = b"\n\n"


def chunks(messages: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(message[6:]) for message in messages[:-1]]


async def complete(served: Any, **body: Any) -> dict[str, Any]:
    """Return the choice of a completion, after a check that a stream has the same."""
    status, answer = await served.post("/v1/completions", body)
    assert status == 200, answer
    (choice,) = answer["choices"]
    streamed = [
        c["choices"][0] for c in chunks(await served.stream("/v1/completions", body, SSE)) if c["choices"]
    ]
    assert "".join(one["text"] for one in streamed) == choice["text"]
    lists = [one["logprobs"] for one in streamed if one["logprobs"]]
    if choice["logprobs"] is None:
        assert lists == []
    else:
        for name, whole in choice["logprobs"].items():
            assert whole is None or [entry for one in lists for entry in one[name]] == whole
    return dict(choice)


async def test_alternatives_are_listed_with_the_chosen_token(served: Any) -> None:
    choice = await complete(served, prompt="ab", max_tokens=2, logprobs=2)
    assert choice["logprobs"]["tokens"] == ["a", "b"]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -0.5, "b": -1.5}, {"b": -0.5, "c": -1.5}]


async def test_without_alternatives_there_is_no_table(served: Any) -> None:
    choice = await complete(served, prompt="ab", max_tokens=2, logprobs=0)
    assert choice["logprobs"]["token_logprobs"] == [-0.5, -0.5]
    assert choice["logprobs"]["top_logprobs"] is None


async def test_tokens_may_be_named_by_id(served: Any) -> None:
    choice = await complete(served, prompt="ab", max_tokens=1, logprobs=1, return_tokens_as_token_ids=True)
    assert choice["logprobs"]["tokens"] == ["token_id:97"]
    assert choice["logprobs"]["top_logprobs"] == [{"token_id:97": -0.5}]


@pytest.mark.parametrize("prompt", ["aé!", list("aé!".encode())])
async def test_echo_lists_the_prompt_first(served: Any, prompt: Any) -> None:
    choice = await complete(served, prompt=prompt, max_tokens=2, echo=True, logprobs=1)
    assert choice["text"] == "aé!a\ufffd"
    logprobs = choice["logprobs"]
    assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5, -0.5]
    assert logprobs["text_offset"] == [0, 1, 1, 2, 3, 4]
    assert logprobs["tokens"] == ["a", "\ufffd", "\ufffd", "!", "a", "\ufffd"]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["top_logprobs"][3] == {"!": -0.5}


async def test_echo_without_logprobs_repeats_the_prompt(served: Any) -> None:
    choice = await complete(served, prompt="ab", max_tokens=2, echo=True)
    assert (choice["text"], choice["logprobs"]) == ("abab", None)
    assert served.engine.params[-1].prompt_logprobs is None


@pytest.mark.parametrize("logprobs", [None, 0, 3])
async def test_no_output_is_asked_for(served: Any, logprobs: int | None) -> None:
    """Some programs score a text in this way."""
    body = {"prompt": ["abc", "xy"], "max_tokens": 0, "echo": True, "logprobs": logprobs}
    _, answer = await served.post("/v1/completions", body)
    assert [one["text"] for one in answer["choices"]] == ["abc", "xy"]
    assert [one["finish_reason"] for one in answer["choices"]] == ["length", "length"]
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": 5}
    if logprobs is not None:
        assert [one["logprobs"]["tokens"] for one in answer["choices"]] == [["a", "b", "c"], ["x", "y"]]
    streamed = chunks(await served.stream("/v1/completions", body, SSE))
    assert sorted(chunk["choices"][0]["text"] for chunk in streamed) == ["abc", "xy"]
    status, refused = await served.post("/v1/completions", {**body, "echo": False})
    assert (status, refused["error"]["param"]) == (400, "max_tokens")


async def test_the_tokens_of_a_stop_string_and_after_it_are_in_no_list(served: Any) -> None:
    choice = await complete(served, prompt="one END two", max_tokens=11, stop="END", logprobs=0)
    assert choice["text"] == "one "
    assert choice["logprobs"]["tokens"] == ["o", "n", "e", " "]
    kept = await complete(
        served,
        prompt="one END two",
        max_tokens=11,
        stop="END",
        logprobs=0,
        include_stop_str_in_output=True,
    )
    assert kept["text"] == "one END"
    assert kept["logprobs"]["tokens"] == list("one END")


async def test_what_did_not_become_a_stop_string_is_listed(served: Any) -> None:
    choice = await complete(served, prompt="abc", max_tokens=3, stop="cx", logprobs=0)
    assert choice["text"] == "abc"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"]


async def test_a_token_that_ends_the_answer_is_listed(served: Any) -> None:
    """Its probability counts. Programs that score texts leave out the last entry, which is this one."""
    choice = await complete(served, prompt="ab", max_tokens=9, stop_token_ids=[98], logprobs=0)
    assert (choice["text"], choice["logprobs"]["tokens"]) == ("a", ["a", "b"])
    kept = await complete(
        served,
        prompt="ab",
        max_tokens=9,
        stop_token_ids=[98],
        logprobs=0,
        include_stop_str_in_output=True,
    )
    assert kept["text"] == "ab"


async def test_min_tokens_holds_for_stop_strings_too(served: Any) -> None:
    choice = await complete(served, prompt="ab", max_tokens=9, stop="b", min_tokens=3)
    assert choice["text"] == "aba"


async def test_a_chat_lists_bytes_and_alternatives(served: Any) -> None:
    body = {
        "messages": [{"role": "user", "content": "é"}],
        "max_tokens": 8,
        "logprobs": True,
        "top_logprobs": 2,
    }
    _, answer = await served.post("/v1/chat/completions", body)
    content = answer["choices"][0]["logprobs"]["content"]
    assert bytes(byte for one in content for byte in one["bytes"]) == "<user>é".encode()
    assert content[0] == {
        "token": "<",
        "logprob": -0.5,
        "bytes": [60],
        "top_logprobs": [
            {"token": "<", "logprob": -0.5, "bytes": [60]},
            {"token": "=", "logprob": -1.5, "bytes": [61]},
        ],
    }
    assert content[6]["bytes"] == [0xC3]
    streamed = chunks(await served.stream("/v1/chat/completions", body, SSE))
    lists = [chunk["choices"][0]["logprobs"] for chunk in streamed]
    assert [one for listed in lists if listed for one in listed["content"]] == content
    assert lists[6] is None  # half of a character has no text yet


def test_the_offsets_of_a_posted_text_count_its_special_tokens(byte_tokenizer: Tokenizer) -> None:
    tokenizer = Tokenizer.from_str(byte_tokenizer.to_str())
    tokenizer.add_special_tokens(["<|user|>", "<s>"])
    codec = TextCodec(tokenizer)
    text = "<|user|>h\u00e9<|user|>"
    begin = tokenizer.token_to_id("<s>")
    ids = [begin, *codec.encode(text)]  # a model's first token is not part of the text
    tokens = [PromptToken(None, [])] * len(ids)
    offsets = [one.start for one in listed_prompt(ids, tokens, codec, text)]
    assert offsets == [0, 0, 8, 9, 9, 10]
    assert text[offsets[-1] :] == "<|user|>"
    hidden = codec.decode(ids)  # how the echo shows a prompt of ids
    assert [one.start for one in listed_prompt(ids, tokens, codec, hidden)] == [0, 0, 0, 1, 1, 2]
