"""Log probabilities of tokens, and the most probable tokens in their places."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgengine.execution.scoring import score


def test_logprob_of_the_chosen_token() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    got = score(logits, torch.tensor([2, 1]))
    torch.testing.assert_close(got.logprobs, torch.tensor([-0.40760596, -1.0986123]))
    assert got.top_tokens.shape == got.top_logprobs.shape == (2, 0)


@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 20, 63, 64, 65, 128, 200, 1500]),
    st.sampled_from([2, 30, 1000]),
    st.integers(1, 20),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@settings(max_examples=300, deadline=None)
def test_the_most_probable_tokens_equal_those_of_a_stable_sort(
    seed: int, vocab_size: int, different: int, count: int, dtype: torch.dtype
) -> None:
    """Of equal logits, the smaller token comes first. Often, many are equal."""
    source = torch.Generator().manual_seed(seed)
    logits = torch.randint(-different, different, (2, vocab_size), generator=source).to(dtype)
    got = score(logits, torch.zeros(2, dtype=torch.int64), count)
    for row in range(2):
        line = logits[row].tolist()
        order = sorted(range(len(line)), key=lambda token: -line[token])
        assert got.top_tokens[row].tolist() == order[:count]
    want = logits.float().log_softmax(-1).gather(1, got.top_tokens)
    torch.testing.assert_close(got.top_logprobs, want)


def test_fewer_alternatives_are_the_first_of_more() -> None:
    logits = torch.randn(5, 5000, generator=torch.Generator().manual_seed(1)).bfloat16()
    tokens = torch.arange(5)
    many = score(logits, tokens, 20)
    for count in (1, 7, 19):
        few = score(logits[2:], tokens[2:], count)
        assert torch.equal(few.top_tokens, many.top_tokens[2:, :count])
        assert torch.equal(few.top_logprobs, many.top_logprobs[2:, :count])
        assert torch.equal(few.logprobs, many.logprobs[2:])
    assert len(set(logits[0][many.top_tokens[0]].tolist())) < 20, "some are equal"


def test_the_chosen_token_has_the_same_log_probability_among_the_most_probable() -> None:
    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(2)) * 5
    got = score(logits, logits.argmax(-1), 3)
    assert torch.equal(got.logprobs, got.top_logprobs[:, 0])
    assert (got.top_logprobs <= 0).all()
    assert got.top(0, 2) == list(
        zip(got.top_tokens[0, :2].tolist(), got.top_logprobs[0, :2].tolist(), strict=True)
    )


@pytest.mark.parametrize("certain", [50.0, 1000.0])
def test_a_certain_token_has_log_probability_zero(certain: float) -> None:
    logits = torch.zeros(1, 100)
    logits[0, 3] = certain
    assert score(logits, torch.tensor([3])).logprobs.tolist() == [0.0]
