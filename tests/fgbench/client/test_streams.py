import json
import random

import pytest

from fgbench.client.endpoints import ENDPOINTS, endpoint_called, error_message
from fgbench.client.streams import MAX_MESSAGE_BYTES, NulSeparated, ServerSentEvents, StreamError
from fgbench.workload.workload import RequestSpec

EVENTS = [b'{"a": 1}', "é ☃ 🎉".encode(), b"two\nlines", b"[DONE]"]
STREAM = (
    b": a comment\r\n"
    b'data: {"a": 1}\r\n\r\n'
    b"event: message\nid: 7\ndata:" + EVENTS[1] + b"\n\n"
    b"data: two\ndata: lines\n\n\n"
    b"data: [DONE]\n\n"
)


def cut(stream, rng):
    at = 0
    while at < len(stream):
        size = rng.randint(1, 9)
        yield stream[at : at + size]
        at += size


@pytest.mark.parametrize("seed", range(20))
def test_events_may_arrive_in_any_pieces(seed):
    parser = ServerSentEvents()
    events = [e for piece in cut(STREAM, random.Random(seed)) for e in parser.feed(piece)]
    assert events == EVENTS


def test_merged_events_and_single_bytes():
    assert ServerSentEvents().feed(STREAM) == EVENTS
    parser = ServerSentEvents()
    assert [e for i in range(len(STREAM)) for e in parser.feed(STREAM[i : i + 1])] == EVENTS


def test_close_returns_an_event_without_its_last_empty_line():
    parser = ServerSentEvents()
    assert parser.feed(b"data: [DONE]") == []
    assert parser.close() == [b"[DONE]"]
    assert parser.close() == []


@pytest.mark.parametrize("seed", range(10))
def test_nul_separated(seed):
    parser = NulSeparated()
    pieces = cut(b"one\0two\0\0three", random.Random(seed))
    assert [m for piece in pieces for m in parser.feed(piece)] == [b"one", b"two"]
    assert parser.close() == [b"three"]


@pytest.mark.parametrize("parser", [ServerSentEvents(), NulSeparated()])
def test_a_message_that_is_too_long_is_an_error(parser):
    assert parser.feed(b"x" * MAX_MESSAGE_BYTES) == []
    with pytest.raises(StreamError, match="longer than"):
        parser.feed(b"x")


def test_bodies_force_the_output_length():
    ids, text = RequestSpec(0, 0.0, (5, 6), 2, 30), RequestSpec(1, 0.0, "hello", 1, 40)
    completions = json.loads(ENDPOINTS["completions"].body(ids, "m"))
    assert (completions["prompt"], completions["model"], completions["max_tokens"]) == ([5, 6], "m", 30)
    assert completions["ignore_eos"] is True
    assert completions["stream_options"] == {"include_usage": True}
    assert json.loads(ENDPOINTS["generate"].body(ids, ""))["prompt_token_ids"] == [5, 6]
    assert json.loads(ENDPOINTS["generate"].body(text, ""))["prompt"] == "hello"


def test_messages_are_read_as_pieces():
    read = ENDPOINTS["completions"].read
    assert read(b'{"choices": [{"text": "", "finish_reason": null}]}').content  # an incomplete character
    assert not read(b'{"choices": []}').content
    assert read(b"[DONE]").last
    usage = read(
        b'{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, "fgengine": {"queued": 1}}'
    )
    assert (usage.prompt_tokens, usage.output_tokens, usage.server) == (3, 4, {"queued": 1.0})
    assert read(b'{"error": {"message": "no"}}').error == "no"
    for bad in (b"{", b"[1]", b"\xff"):
        with pytest.raises(StreamError):
            read(bad)


def test_error_messages_of_several_servers():
    assert error_message(b'{"error": {"message": "a\\n b"}}') == "a b"
    assert error_message(b'{"detail": "Not Found"}') == "Not Found"
    assert error_message(b"<html>\xff") == "<html>\ufffd"
    assert len(error_message(b"x" * 10_000)) == 300


def test_an_unknown_endpoint_is_an_error():
    with pytest.raises(ValueError, match="use completions or generate"):
        endpoint_called("chat")
