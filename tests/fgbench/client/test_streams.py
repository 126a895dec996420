import json
import random

import pytest

from fgbench.client.endpoints import endpoint_called, error_message
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


@pytest.mark.parametrize(
    "heartbeat", [b"data:\n\n", b"data: \n\n", b"data\n\n", b"event: ping\n\n", b": ping\n\n"]
)
@pytest.mark.parametrize("before", [True, False])
def test_an_event_without_data_is_skipped(heartbeat, before):
    stream = heartbeat + STREAM if before else STREAM + heartbeat
    assert ServerSentEvents().feed(stream) == EVENTS
    parser = ServerSentEvents()
    assert [e for i in range(len(stream)) for e in parser.feed(stream[i : i + 1])] == EVENTS
    assert ServerSentEvents().feed(b"data: \n\n") == []


@pytest.mark.parametrize("end", [b"\r", b"\r\n", b"\n"])
@pytest.mark.parametrize("seed", range(10))
def test_lines_end_with_lf_cr_lf_or_cr(end, seed):
    stream = b"\xef\xbb\xbf" + STREAM.replace(b"\r\n", b"\n").replace(b"\n", end)
    parser = ServerSentEvents()
    assert [e for piece in cut(stream, random.Random(seed)) for e in parser.feed(piece)] == EVENTS


def test_with_cr_an_event_is_complete_without_waiting_for_the_next_one():
    parser = ServerSentEvents()
    assert parser.feed(b"data: a\r\r") == [b"a"]
    assert parser.feed(b"\ndata: b\r\r") == [b"b"]


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
    completions = json.loads(endpoint_called("completions").body(ids, "m"))
    assert (completions["prompt"], completions["model"], completions["max_tokens"]) == ([5, 6], "m", 30)
    assert completions["ignore_eos"] is True
    assert completions["stream_options"] == {"include_usage": True}
    assert json.loads(endpoint_called("generate").body(ids, ""))["prompt_token_ids"] == [5, 6]
    assert json.loads(endpoint_called("generate").body(text, ""))["prompt"] == "hello"


@pytest.mark.parametrize("text", ["\\ud83d", "a\\uDE00b", "\\ud83d\\ud83d\\ude00", "\\ud83d\\ude00"])
def test_lone_surrogates_in_a_text_do_not_matter(text):
    piece = endpoint_called("completions").read(b'{"choices": [{"text": "' + text.encode() + b'"}]}')
    assert piece.content
    assert not piece.empty


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ('{"object": "error", "message": "The prompt is too long"}', "The prompt is too long"),
        ('{"error": {"message": "no"}}', "no"),
        ('{"error": "no"}', "no"),
        ('{"detail": "no"}', "no"),
        ('{"error": "", "choices": []}', None),
        ('{"error": false, "choices": []}', None),
        ('{"error": {}, "choices": []}', None),
    ],
)
def test_errors_in_a_stream_have_several_forms(message, error):
    assert endpoint_called("completions").read(message.encode()).error == error


def test_messages_are_read_as_pieces():
    read = endpoint_called("completions").read
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
    with pytest.raises(ValueError, match="there is no endpoint 'chats': use completions, chat, generate"):
        endpoint_called("chats")
