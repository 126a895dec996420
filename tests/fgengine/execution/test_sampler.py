"""Sampling: possible tokens, their distribution, and that a draw depends only on the request."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from fgengine.execution.sampler import _mixed, sample, seed_of, uniforms
from fgengine.ops.reference import TorchOps, _first_above
from fgengine.request import Request, SamplingParams

OPS = TorchOps()


def request_of(params: SamplingParams, id: str = "r") -> Request:
    return Request.new(id, [1], params, 0.0)


def draws(logits: torch.Tensor, params: SamplingParams, count: int) -> list[int]:
    """Draw one token at each of the first ``count`` output positions."""
    requests = [request_of(params)] * count
    tokens: list[int] = sample(OPS, logits.expand(count, -1), requests, range(count)).tolist()
    return tokens


def test_temperatures_at_and_near_zero_are_greedy() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 1.0, 4.999]])
    for temperature in (0.0, 1e-9):
        params = SamplingParams(temperature=temperature)
        assert sample(OPS, logits, [request_of(params), request_of(params)], [0, 0]).tolist() == [1, 0]


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
def test_only_tokens_within_top_k_and_top_p_are_drawn(params: SamplingParams, support: set[int]) -> None:
    logits = torch.tensor([0.25, 0.15, 0.06, 0.48, 0.06]).log()
    assert set(draws(logits, replace(params, seed=3), 400)) == support


@pytest.mark.parametrize("params", [SamplingParams(seed=1), SamplingParams(seed=2, top_k=4, top_p=0.999)])
def test_draws_follow_the_tempered_distribution(params: SamplingParams) -> None:
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
    alone = [int(sample(OPS, logits[n : n + 1], [requests[n]], [positions[n]])) for n in range(25)]
    assert sample(OPS, logits, requests, positions).tolist() == alone
    order = torch.randperm(25).tolist()
    shuffled = sample(OPS, logits[order], [requests[n] for n in order], [positions[n] for n in order])
    assert shuffled.tolist() == [alone[n] for n in order]


def test_seeds_differ_by_request_and_engine() -> None:
    seeded, unseeded = request_of(SamplingParams(seed=5)), request_of(SamplingParams(), id="x")
    assert seed_of(seeded, 0) == seed_of(seeded, 1) == 5
    assert seed_of(unseeded, 0) == seed_of(request_of(SamplingParams(), id="x"), 0)
    assert len({seed_of(unseeded, 0), seed_of(unseeded, 1), seed_of(request_of(SamplingParams()), 0)}) == 3
    assert len(set(uniforms(range(10), [0] * 10)) | set(uniforms(range(10), range(1, 11)))) == 20


def test_draws_are_the_published_generators() -> None:
    """``_mixed`` gives the first numbers of SplitMix64's reference code from state 0."""
    steps = [n * 0x9E3779B97F4A7C15 % 2**64 for n in range(3)]
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert _mixed(np.array(steps, np.uint64)).tolist() == published


def test_draws_are_uniform_and_independent() -> None:
    """Over the positions of a seed, over neighbouring seeds, and for pairs of neighbours of both kinds."""
    n = 50_000
    grid = uniforms(np.repeat(np.arange(300), 300).tolist(), list(range(300)) * 300).reshape(300, 300)
    assert ((grid >= 0.0) & (grid < 1.0)).all()
    lines = [uniforms([2**63 - 1] * n, range(n)), uniforms(range(n), [0] * n), uniforms(range(n), range(n))]
    for line in lines:
        assert chisquare(np.histogram(line, 200, (0, 1))[0]).pvalue > 1e-3
    for one, other in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]), (grid[1:, :-1], grid[:-1, 1:])):
        pairs = np.histogram2d(one.ravel(), other.ravel(), 20, ((0, 1), (0, 1)))[0]
        assert chisquare(pairs.ravel()).pvalue > 1e-3


def test_top_k_and_top_p_preserve_the_vocabularys_order() -> None:
    """If top-k and top-p remove nearly nothing, a draw gives the same token with and without them."""
    torch.manual_seed(0)
    logits = torch.randn(200, 300)
    requests = [request_of(SamplingParams(seed=n)) for n in range(200)]
    cut = [request_of(SamplingParams(seed=n, top_k=299, top_p=0.9999)) for n in range(200)]
    agreeing = sample(OPS, logits, requests, [0] * 200) == sample(OPS, logits, cut, [0] * 200)
    assert agreeing.sum() >= 198


def test_equal_logits_rank_by_their_place() -> None:
    ties = torch.zeros(1, 8)
    assert set(draws(ties, SamplingParams(seed=1, top_k=3), 200)) == {0, 1, 2}
    assert set(draws(ties, SamplingParams(seed=1, top_p=0.5), 200)) == {0, 1, 2, 3}
    tempered = torch.tensor([[1.0, 1.0 + 2**-20, 0.0]])  # equal in float32 once divided by 10
    assert set(draws(tempered, SamplingParams(seed=1, top_k=1, temperature=10.0), 50)) == {1}


def acceptable(logits: torch.Tensor, row: list[float], token: int) -> bool:
    """Whether ``token`` is that of the definition: sort, cut, and invert the cumulative distribution.

    The draw may be off by the rounding of sums.
    """
    temperature, top_k, top_p, draw = row
    mass = ((logits.double() - logits.double().max()) / temperature).exp()
    order = logits.sort(descending=True, stable=True).indices
    ranked = mass[order]
    ranked[int(top_k) or len(ranked) :] = 0.0
    ranked[ranked.cumsum(0) - ranked >= top_p * ranked.sum()] = 0.0
    mass = torch.zeros_like(mass).scatter(0, order, ranked)
    upto = (mass.cumsum(0) / mass.sum()).tolist()
    return mass[token] > 0.0 and upto[token] - mass[token] / mass.sum() - 1e-5 <= draw <= upto[token] + 1e-5


@pytest.mark.parametrize("vocab", [5, 256, 257, 5003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_those_of_the_definition(vocab: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocab)
    rng = np.random.default_rng(vocab)
    for spread in (0.1, 1.0, 4.0, 30.0):
        logits = (torch.randn(24, vocab) * spread).to(dtype)
        logits[12:, 1:][torch.rand(12, vocab - 1) < 0.9] = -torch.inf
        rows = np.stack(
            [
                rng.choice([0.02, 0.7, 1.0, 2.0], 24),
                rng.choice([0, 0, 1, 3, vocab - 1, vocab, vocab + 5], 24),
                rng.choice([1.0, 1.0, 0.9, 0.5, 0.001], 24),
                rng.choice([0.0, 0.5, 0.99, 1 - 1e-16, *rng.random(4)], 24),
            ],
            axis=1,
        )
        tokens = OPS.sample(logits, torch.tensor(rows)).tolist()
        for each, row, token in zip(logits, rows.tolist(), tokens, strict=True):
            assert acceptable(each, row, token), (spread, row, token)


def test_rounding_never_draws_a_token_without_a_mass() -> None:
    """It may put the draw before the first mass or behind the last one."""
    cumulative = torch.tensor([[0.0, 0.0, 0.3, 0.3, 0.8, 0.8]], dtype=torch.float64)
    for wanted, place in ((-1e-17, 2), (0.0, 2), (0.3, 4), (0.8, 4), (0.9, 4)):
        found = _first_above(cumulative, torch.tensor([[wanted]], dtype=torch.float64))
        assert found.item() == place, wanted


def test_the_coldest_temperature_is_greedy() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert draws(logits, SamplingParams(temperature=5e-324), 20) == [1] * 20
