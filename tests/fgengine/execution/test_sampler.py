"""Draws: their support, their distribution, and that they depend on nothing but the request."""

from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare

from fgengine.execution.sampler import logprobs_of, sample, seed_of, uniform
from fgengine.request import Request, SamplingParams


def request_of(params: SamplingParams, id: str = "r") -> Request:
    return Request.new(id, [1], params, 0.0)


def draws(logits: torch.Tensor, params: SamplingParams, count: int) -> list[int]:
    """One token at each of the first ``count`` output positions."""
    requests = [request_of(params)] * count
    tokens: list[int] = sample(logits.expand(count, -1), requests, range(count)).tolist()
    return tokens


def test_greedy_and_temperature_near_zero() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 1.0, 4.999]])
    for temperature in (0.0, 1e-9):
        params = SamplingParams(temperature=temperature)
        assert sample(logits, [request_of(params), request_of(params)], [0, 0]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("params", "support"),
    [
        (SamplingParams(), {0, 1, 2, 3, 4}),
        (SamplingParams(top_k=2), {0, 3}),
        (SamplingParams(top_k=1), {3}),
        (SamplingParams(top_p=0.45), {3}),
        (SamplingParams(top_p=0.6), {0, 3}),
        (SamplingParams(top_p=0.85), {0, 1, 3}),
        (SamplingParams(top_k=3, top_p=0.6), {0, 3}),
        (SamplingParams(top_k=3, top_p=0.5), {3}),
        (SamplingParams(top_p=1e-9), {3}),
        (SamplingParams(top_k=99), {0, 1, 2, 3, 4}),
    ],
)
def test_support(params: SamplingParams, support: set[int]) -> None:
    logits = torch.tensor([0.25, 0.15, 0.06, 0.48, 0.06]).log()
    assert set(draws(logits, replace(params, seed=3), 400)) == support


@pytest.mark.parametrize("params", [SamplingParams(seed=1), SamplingParams(seed=2, top_k=4, top_p=0.999)])
def test_distribution(params: SamplingParams) -> None:
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])
    params = replace(params, temperature=2.0)
    counts = torch.bincount(torch.tensor(draws(weights.log(), params, 4000)), minlength=4)
    expected = (weights.log() / 2).double().softmax(0) * 4000
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3


def test_a_draw_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    kinds = [
        SamplingParams(temperature=0.0),
        SamplingParams(seed=7),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.7, temperature=1.5),
        SamplingParams(top_k=20, top_p=0.9, seed=7),
    ]
    requests = [request_of(kinds[n % 5], id=str(n)) for n in range(25)]
    positions = [n // 5 for n in range(25)]
    logits = torch.randn(25, 300) * 3
    alone = [int(sample(logits[n : n + 1], [requests[n]], [positions[n]])) for n in range(25)]
    assert sample(logits, requests, positions).tolist() == alone
    order = torch.randperm(25).tolist()
    shuffled = sample(logits[order], [requests[n] for n in order], [positions[n] for n in order])
    assert shuffled.tolist() == [alone[n] for n in order]


def test_seeds() -> None:
    seeded, unseeded = request_of(SamplingParams(seed=5)), request_of(SamplingParams(), id="x")
    assert seed_of(seeded, 0) == seed_of(seeded, 1) == 5
    assert seed_of(unseeded, 0) == seed_of(request_of(SamplingParams(), id="x"), 0)
    assert len({seed_of(unseeded, 0), seed_of(unseeded, 1), seed_of(request_of(SamplingParams()), 0)}) == 3
    assert len({uniform(s, p) for s in range(10) for p in range(10)}) == 100


def test_logprob_of_the_chosen_token() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    got = logprobs_of(logits, torch.tensor([2, 1]))
    torch.testing.assert_close(got, torch.tensor([-0.40760596, -1.0986123]))
