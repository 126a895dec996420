"""The passes that compute a prompt's log probabilities: each position once, few logits at a time."""

from __future__ import annotations

import random
from array import array

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgengine.execution.prompt_passes import POSITIONS, divide, pieces_of, scores_of
from fgengine.execution.scoring import score
from fgengine.plan import PlanItem
from fgengine.prompt_logprobs import PromptLogprobs
from fgengine.request import Request, SamplingParams


def request_of(prompt_len: int, asked: int | None, collected: int = 0, output: int = 0) -> Request:
    params = SamplingParams(prompt_logprobs=asked)
    request = Request.new(f"{prompt_len}-{asked}", list(range(prompt_len)), params, 0.0)
    request.tokens.extend([0] * output)
    if request.prompt_logprobs is not None:
        request.prompt_logprobs.extend(PromptLogprobs(0, 0, array("f", [0.5] * collected)))
    return request


def test_a_short_prompt_is_one_pass_up_to_its_last_token() -> None:
    request = request_of(5, 2)
    passes, rest = divide([PlanItem(request, 0, 5, [3], True)])
    (one,) = passes
    assert one.items == [PlanItem(request, 0, 4, [3], False)]
    assert (one.rows, one.targets, one.num_top) == ([0, 1, 2, 3], [1, 2, 3, 4], 2)
    assert rest == [PlanItem(request, 4, 1, [3], True)]


def test_other_requests_are_left_as_they_are() -> None:
    items = [
        PlanItem(request_of(9, None), 0, 9, [1], True),
        PlanItem(request_of(1, 3), 0, 1, [2], True),  # no token follows another
        PlanItem(request_of(9, 3, collected=8, output=2), 10, 1, [3], True),
        PlanItem(request_of(9, 3, collected=8, output=2), 0, 11, [3], True),  # again, after an eviction
    ]
    assert divide(items) == ([], items)


def test_a_prompt_that_is_computed_again_is_scored_from_where_it_was() -> None:
    request = request_of(20, 0, collected=6)
    passes, rest = divide([PlanItem(request, 0, 12, [1, 2], False)])
    assert passes[0].items == [PlanItem(request, 0, 12, [1, 2], False)]
    assert passes[0].rows == [6, 7, 8, 9, 10, 11]
    assert passes[0].targets == [7, 8, 9, 10, 11, 12]
    assert rest == []


@given(st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_every_position_is_computed_once_in_order_and_scored_once(seed: int) -> None:
    source = random.Random(seed)
    items = []
    for n in range(source.randrange(1, 6)):
        length = source.choice([1, 2, 5, 40, 70, 300])
        collected = source.randrange(length)
        request = request_of(length, source.choice([None, 0, 5]), collected)
        request.id = str(n)
        start = (
            source.randrange(length) if request.prompt_logprobs is None else source.randrange(collected + 1)
        )
        count = source.randrange(1, length - start + 1)
        items.append(PlanItem(request, start, count, [n], start + count == length))
    passes, rest = divide(items)
    assert all(0 < len(one.rows) <= POSITIONS for one in passes)
    assert all(len(one.rows) == POSITIONS for one in passes[:-1])
    computed: dict[Request, list[int]] = {item.request: [] for item in items}
    scored: dict[Request, list[int]] = {item.request: [] for item in items}
    for one in passes:
        inputs = [(i.request, p) for i in one.items for p in range(i.start, i.start + i.num_tokens)]
        for request, position in inputs:
            computed[request].append(position)
        wanted = [inputs[row] for row in one.rows]
        assert wanted == [(r, p) for r, first, count in one.pieces for p in range(first, first + count)]
        assert one.targets == [request.tokens[position + 1] for request, position in wanted]
        for request, position in wanted:
            scored[request].append(position)
        assert len({item.request for item in one.items}) == len(one.items)
    for item in rest:
        computed[item.request].extend(range(item.start, item.start + item.num_tokens))
    assert [item.yields_token for item in rest if item.yields_token] == [
        True for item in items if item.yields_token
    ]
    for request, start, count, _, _ in items:
        assert computed[request] == list(range(start, start + count))
        collected = request.prompt_logprobs
        last = min(start + count, request.prompt_len - 1)
        first = last if collected is None else max(start, len(collected))
        assert scored[request] == list(range(first, last))


def test_the_pieces_of_a_prompt_are_joined() -> None:
    wide, narrow = request_of(150, 4), request_of(30, 1)
    passes, _ = divide([PlanItem(wide, 0, 150, [1], True), PlanItem(narrow, 0, 30, [2], True)])
    logits = torch.randn(178, 90, generator=torch.Generator().manual_seed(3))
    lines = list(torch.split(logits, [len(one.rows) for one in passes]))
    scored = [
        (one, scores_of(rows, torch.tensor(one.targets) % 90, one.num_top))
        for one, rows in zip(passes, lines, strict=True)
    ]
    found = pieces_of(scored)
    want = score(logits, torch.tensor([*range(1, 150), *range(1, 30)]) % 90, 4)
    for request, rows, width in ((wide, range(149), 4), (narrow, range(149, 178), 1)):
        entries = list(found[request.id].entries())
        assert [logprob for logprob, _ in entries] == want.logprobs[list(rows)].tolist()
        assert [top for _, top in entries] == [want.top(row, width) for row in rows]


def test_a_piece_is_not_counted_twice_and_a_gap_is_an_error() -> None:
    collected = PromptLogprobs()
    collected.extend(PromptLogprobs(0, 1, array("f", [1, 2]), array("i", [5, 6]), array("f", [3, 4])))
    collected.extend(PromptLogprobs(1, 1, array("f", [2, 7]), array("i", [6, 8]), array("f", [4, 9])))
    assert list(collected.entries()) == [(1.0, [(5, 3.0)]), (2.0, [(6, 4.0)]), (7.0, [(8, 9.0)])]
    assert list(collected.entries(1, 2)) == [(2.0, [(6, 4.0)])]
    with pytest.raises(RuntimeError, match="1 log probabilities of the prompt are missing before 4"):
        collected.extend(PromptLogprobs(4, 1, array("f", [0])))
