"""Conversations and shared prefixes: what prompts have in common, and when turns arrive and are sent."""

from __future__ import annotations

import itertools
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from fgbench.client.endpoints import endpoint_called
from fgbench.client.sending import Target, run_load
from fgbench.metrics.record import RequestRecord
from fgbench.spec.load import LoadSpec
from fgbench.workload.arrivals import ClosedLoop, Replay, Uniform
from fgbench.workload.build import build_workload
from fgbench.workload.conversations import SyntheticConversations
from fgbench.workload.datasets import Lengths, Synthetic
from fgbench.workload.derived import Bounded, SharedPrefix
from fgbench.workload.lengths import Between
from fgbench.workload.reading import load_dataset
from fgbench.workload.trace import Trace, read_trace
from fgbench.workload.workload import Prompt, Workload
from fgengine.config import EngineConfig

TALKS = SyntheticConversations(Between(3, 3), Between(2, 2), Between(3, 3))
"""Three turns: prompts of 3, 8 and 13 tokens, answers of 2."""


def prompts(workload: Workload) -> list[Prompt]:
    return [request.prompt for request in workload.requests]


def test_a_turn_begins_with_the_turn_before_it() -> None:
    workload = build_workload(TALKS, rate=1.0, num_prompts=7)
    assert [request.turn for request in workload.requests] == [0, 1, 2, 0, 1, 2, 0]
    assert [request.prompt_tokens for request in workload.requests] == [3, 8, 13, 3, 8, 13, 3]
    first, second, third, other, *_ = prompts(workload)
    assert second[:3] == first
    assert third[:8] == second
    assert other != first


def test_conversations_arrive_at_the_rate_of_requests() -> None:
    workload = build_workload(TALKS, rate=3.0, num_prompts=300, arrivals=Uniform())
    times = [request.scheduled for request in workload.requests if request.turn == 0]
    assert len(times) == 100
    assert np.diff(times) == pytest.approx(1.0)  # 1 conversation per second is 3 requests per second
    assert all(
        workload.requests[i].scheduled == workload.requests[i - workload.requests[i].turn].scheduled
        for i in range(300)
    )


def test_think_times_follow_answers_only() -> None:
    workload = build_workload(TALKS, rate=1.0, num_prompts=3000, think_time=2.0)
    thought = [request.think_time for request in workload.requests if request.turn]
    assert np.mean(thought) == pytest.approx(2.0, rel=0.1)
    assert all(request.think_time == 0.0 for request in workload.requests if not request.turn)
    plain = build_workload(TALKS, rate=1.0, num_prompts=3000)
    assert plain.fingerprint != workload.fingerprint
    assert prompts(plain) == prompts(workload)


@pytest.mark.parametrize("dataset", [TALKS, SharedPrefix(Synthetic(Between(8, 8), Between(2, 2)), 0.5)])
def test_shared_tokens_differ_between_loads_but_not_in_the_fingerprint(dataset: Any) -> None:
    slow, fast = (build_workload(dataset, rate=rate, num_prompts=6) for rate in (1.0, 2.0))
    assert not set(prompts(slow)) & set(prompts(fast))
    assert slow.prompts_fingerprint == fast.prompts_fingerprint
    assert (
        build_workload(dataset, rate=1.0, num_prompts=6, seed=1).prompts_fingerprint
        != slow.prompts_fingerprint
    )


def test_prompts_have_a_share_in_common() -> None:
    dataset = SharedPrefix(Lengths("table", ((10, 2), (20, 2))), 0.5)
    assert dataset.name == "table-prefix0.5"
    made = prompts(build_workload(dataset, rate=1.0, num_prompts=6))
    shortest, longest = min(made, key=len), max(made, key=len)
    assert (len(shortest), len(longest)) == (10, 20)
    assert shortest[:5] == longest[:5]
    assert shortest[5] != longest[5]
    assert len({prompt[:5] for prompt in made}) == 1


def test_texts_have_no_prefix_share() -> None:
    with pytest.raises(
        ValueError, match="--prefix-share does not work with the dataset synthetic-3x2-turns3"
    ):
        list(islice(SharedPrefix(TALKS, 0.5).samples(np.random.default_rng(0)), 1))


def test_a_clipped_prompt_keeps_the_beginning_of_its_segments() -> None:
    clipped = Bounded(TALKS, 11, clip=True)
    third = next(s for s in clipped.samples(np.random.default_rng(0)) if s.turn == 2)
    assert (third.prompt_tokens, third.output_tokens) == (10, 1)
    assert sum(tokens for _, tokens in third.shared) == 10


def test_the_hash_ids_of_a_trace_are_shared_blocks(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [(20, [7, 8]), (32, [7, 9]), (16, [7]), (40, [1, 2, 3])]
    path.write_text(
        "".join(
            json.dumps({"timestamp": i * 1000, "input_length": n, "output_length": 2, "hash_ids": ids}) + "\n"
            for i, (n, ids) in enumerate(rows)
        )
    )
    trace = read_trace(path)
    assert not any("not replayed" in note for note in trace.notes)
    a, b, c, d = prompts(build_workload(trace.dataset, rate=1.0, num_prompts=4))
    assert [len(prompt) for prompt in (a, b, c, d)] == [20, 32, 16, 40]
    assert a[:16] == b[:16] == c
    assert a[16:] != b[16:20]
    assert d[:16] != a[:16]


def test_hash_ids_that_fit_no_block_size_are_reported_as_not_replayed(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1]}\n' * 2)
    trace = read_trace(path, time_unit="ms")
    assert trace.shared == ()
    assert any("shared prefixes (hash_ids) are not replayed" in note for note in trace.notes)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer with one token per word."""
    found = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_recorded_conversation_is_sent_as_its_messages(tokenizer: Path) -> None:
    turns = [("human", "a b"), ("gpt", "c"), ("human", "d e f"), ("gpt", "g h"), ("human", "unanswered")]
    record = {"id": "x", "conversations": [{"from": who, "value": said} for who, said in turns]}
    path = tokenizer / "talks.json"
    path.write_text(json.dumps([record]))
    dataset = load_dataset(path=path, tokenizer=lambda: tokenizer, multi_turn=True)
    assert dataset.name == "talks-turns"
    workload = build_workload(dataset, rate=1.0, num_prompts=2)
    first, second = workload.requests
    assert (first.prompt, first.prompt_tokens, first.output_tokens) == ("a b", 2, 1)
    assert (second.prompt, second.prompt_tokens, second.output_tokens) == ("a b\nc\nd e f", 6, 2)
    body = json.loads(endpoint_called("chat").body(second, "m"))
    assert body["messages"] == [
        {"role": "user", "content": "a b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d e f"},
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multi_turn": True}, "--multi-turn needs a dataset of conversations, and sharegpt-lengths is none"),
        ({"turns": "3"}, "--turns does not work with the dataset sharegpt-lengths"),
    ],
)
def test_wrong_datasets_of_conversations_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoadSpec(**options).to_dataset(EngineConfig(), lambda line: None)
    with pytest.raises(ValueError, match="--think-time needs --multi-turn or --turns"):
        LoadSpec(think_time=1.0).to_load()


def longest_overlap(records: list[RequestRecord]) -> int:
    """Return the largest number of requests in flight at one moment."""
    steps = sorted([(r.sent, 1) for r in records] + [(r.last_token or 0.0, -1) for r in records])
    return max(sum(step for _, step in steps[: i + 1]) for i in range(len(steps)))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [None, 2])
async def test_a_turn_is_sent_after_the_answer_before_it(fake_server: Any, workers: int | None) -> None:
    fake_server.gap = 0.05
    arrivals = Uniform() if workers is None else ClosedLoop(workers)
    workload = build_workload(TALKS, rate=float("inf"), num_prompts=9, arrivals=arrivals, think_time=0.02)
    records: list[RequestRecord] = []
    target = Target(fake_server.url, "fake", endpoint_called("completions"), 10.0)
    assert await run_load(workload.requests, target, records.append, concurrency=workers) == "complete"
    records.sort(key=lambda record: record.index)
    assert all(record.ok for record in records)
    for spec, before, record in zip(workload.requests[1:], records, records[1:], strict=False):
        if spec.turn:
            assert record.scheduled == pytest.approx((before.finished or 0.0) + spec.think_time, abs=1e-6)
            assert record.sent >= record.scheduled
    assert longest_overlap(records) == (workers or 3)


@pytest.mark.slow
async def test_no_turn_is_sent_after_the_duration(fake_server: Any) -> None:
    fake_server.gap = 0.05
    workload = build_workload(TALKS, rate=float("inf"), num_prompts=3, think_time=60.0)
    records: list[RequestRecord] = []
    target = Target(fake_server.url, "fake", endpoint_called("completions"), 10.0)
    assert await run_load(workload.requests, target, records.append, duration=0.3) == "complete"
    assert [record.index for record in records] == [0]


def test_a_warm_up_request_shares_nothing_with_measured_ones(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    row = {"timestamp": 0, "input_length": 32, "output_length": 2, "hash_ids": [1, 2]}
    path.write_text("".join(json.dumps(row | {"timestamp": 1000 * i}) + "\n" for i in range(4)))
    for dataset in (
        read_trace(path).dataset,
        TALKS,
        SharedPrefix(Synthetic(Between(8, 8), Between(2, 2)), 0.5),
    ):
        workload = build_workload(dataset, rate=1.0, num_prompts=4, num_warmup=3)
        assert len(workload.warmup) == 3
        begins = {request.prompt[:3] for request in workload.requests}
        assert not begins & {request.prompt[:3] for request in workload.warmup}
        assert all(request.turn == 0 for request in workload.warmup)


def test_all_turns_of_a_conversation_have_one_user() -> None:
    workload = build_workload(TALKS, rate=1.0, num_prompts=30, users=5)
    for before, request in itertools.pairwise(workload.requests):
        assert not request.turn or request.user == before.user
    assert len({request.user for request in workload.requests}) > 2


CHATS = [
    {"chat_id": 1, "parent_chat_id": -1},
    {"chat_id": 2, "parent_chat_id": -1},
    {"chat_id": 3, "parent_chat_id": 1},
    {"chat_id": 4, "parent_chat_id": 3},
    {"chat_id": 5, "parent_chat_id": 2},
    {"chat_id": 6, "parent_chat_id": 99},  # what it continues is not in the trace
]
SESSIONS = [{"session_id": name} for name in ("a", "b", "a", "a", "b", "c")]


def trace_of(path: Path, rows: list[dict[str, Any]]) -> Trace:
    lengths = {"input_length": 8, "output_length": 2}
    path.write_text(
        "".join(json.dumps({"timestamp": i, **lengths, **row}) + "\n" for i, row in enumerate(rows))
    )
    return read_trace(path, time_unit="s")


@pytest.mark.parametrize("rows", [CHATS, SESSIONS])
def test_a_trace_has_conversations(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    trace = trace_of(tmp_path / "t.jsonl", rows)
    assert [turn for _, turn in trace.turns] == [0, 0, 1, 2, 1, 0]
    names = [name for name, _ in trace.turns]
    assert names[0] == names[2] == names[3]
    assert names[1] == names[4]
    assert len(set(names)) == 3
    assert any("--multi-turn replays its conversations" in note for note in trace.notes)
    assert all(
        request.turn == 0 for request in build_workload(trace.dataset, rate=1.0, num_prompts=6).requests
    )


def test_a_trace_without_conversations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--multi-turn needs a trace with session_id or conversation_id"):
        _ = trace_of(tmp_path / "t.jsonl", [{}, {}]).conversations


@pytest.mark.slow
async def test_a_recorded_turn_is_sent_at_its_time_but_after_the_answer_before_it(
    fake_server: Any, tmp_path: Path
) -> None:
    """Each answer takes 0.2 s; the requests are recorded 0.05 s apart."""
    fake_server.gap = 0.2
    trace = trace_of(tmp_path / "t.jsonl", CHATS)
    replay = Replay("t", trace.times)
    workload = build_workload(trace.conversations, rate=20.0, num_prompts=6, arrivals=replay, users=4)
    records: list[RequestRecord] = []
    target = Target(fake_server.url, "fake", endpoint_called("completions"), 10.0)
    await run_load(workload.requests, target, records.append)
    one = {record.index: record for record in records}
    assert [one[i].scheduled for i in (0, 1, 5)] == [0.0, 0.05, 0.25]
    assert one[2].scheduled == pytest.approx(one[0].finished, abs=1e-5)
    assert one[3].scheduled == pytest.approx(one[2].finished, abs=1e-5)
    assert one[4].scheduled == pytest.approx(one[1].finished, abs=1e-5)
    assert one[0].user == one[2].user == one[3].user
