"""What an answer's stream gives: when its tokens arrived, and what is wrong with it."""

from __future__ import annotations

import json

import pytest

from fgbench.client.answer import Answer
from fgbench.client.endpoints import endpoint_called
from fgbench.metrics.latency import itl, moments, tpot
from fgbench.metrics.record import RequestRecord
from fgbench.workload.workload import RequestSpec

DONE = "data: [DONE]\n\n"


def event(text: str | None = None, **more: object) -> str:
    choices = [] if text is None else [{"index": 0, "text": text, "finish_reason": more.pop("finish", None)}]
    return f"data: {json.dumps({'choices': choices, **more})}\n\n"


def usage(tokens: int) -> str:
    return event(None, usage={"prompt_tokens": 2, "completion_tokens": tokens})


def answered(*timed: tuple[float, str], tokens: int = 4, close: bool = True) -> RequestRecord:
    answer = Answer(RequestSpec(0, 0.0, (1, 2), 2, tokens), endpoint_called("completions"), 0.0)
    for at, text in timed:
        answer.feed(text.encode(), at)
    last = timed[-1][0] if timed else 0.0
    if close:
        answer.close(last)
    return answer.record(last)


def test_an_empty_first_message_is_no_first_token() -> None:
    tokens = [(0.5 + 0.01 * i, event("x")) for i in range(4)]
    record = answered((0.001, event("")), *tokens, (0.6, usage(4) + DONE))
    assert record.ok
    assert (record.first_token, record.last_token, len(record.token_times)) == (0.5, 0.53, 4)
    counted = answered(
        (0.001, event("", usage={"prompt_tokens": 2, "completion_tokens": 0})),
        *tokens,
        (0.6, usage(4) + DONE),
    )
    assert counted.first_token == 0.5


def test_an_empty_closing_message_is_no_last_token() -> None:
    tokens = [(0.1 * i, event("x")) for i in range(1, 5)]
    record = answered(*tokens, (0.9, event("", finish="length")), (0.9, usage(4) + DONE))
    assert (record.last_token, len(record.token_times)) == (0.4, 4)


def test_an_empty_text_is_a_token_if_a_character_is_incomplete() -> None:
    texts = ["", "", "", "\U0001f600"]  # an emoji of four tokens
    record = answered(*((0.1 * (i + 1), event(text)) for i, text in enumerate(texts)), (0.5, usage(4) + DONE))
    assert (record.first_token, len(record.token_times)) == (0.1, 4)


def test_an_empty_first_message_is_no_token_if_pieces_hold_several_tokens() -> None:
    record = answered((0.01, event("")), (0.5, event("abcd")), (0.6, usage(4) + DONE))
    assert (record.first_token, len(record.token_times)) == (0.5, 1)


def test_a_stream_may_end_without_a_marker_if_it_says_why() -> None:
    tokens = "".join(event("x") for _ in range(3)) + event("x", finish="length") + usage(4)
    assert answered((0.1, tokens)).ok
    assert answered((0.1, tokens.replace('"length"', "null"))).error == (
        "protocol: the stream ended before its closing marker"
    )


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ('{"choices": [{"text": "abc"}]}', "the server answered at once instead of streaming"),
        ("<!doctype html><title>Log in</title>", "the server answered with a web page"),
        ("ok", "the answer is not a stream of server-sent events: ok"),
    ],
)
def test_the_error_of_an_answer_that_is_no_stream_says_what_it_is(body: str, error: str) -> None:
    record = answered((0.1, body))
    assert record.error is not None
    assert record.error.startswith(f"protocol: {error}")


def timed(*times: float, tokens: int) -> RequestRecord:
    return RequestRecord(0, 0.0, 0.0, 2, tokens, tokens, times[0], times[-1], times, finished=times[-1])


def test_the_time_per_token_of_clumps() -> None:
    """A server that needs 50 ms for a token, seen through a proxy that passes on four at a time."""
    clumps = timed(*(0.2 * (i // 4 + 1) for i in range(16)), tokens=16)
    assert tpot(clumps) == pytest.approx(0.05)
    assert moments(clumps) == 4
    bundled = timed(0.2, 0.4, 0.6, 0.8, tokens=16)  # the same in four pieces
    assert tpot(bundled) == pytest.approx(0.05)
    assert itl(bundled) == pytest.approx([0.2] * 3)
    assert tpot(timed(*[0.8] * 16, tokens=16)) is None  # all in one read
    assert tpot(timed(0.8, tokens=16)) is None  # all in one piece
    assert tpot(timed(0.1, 0.2, 0.3, tokens=3)) == pytest.approx(0.1)
