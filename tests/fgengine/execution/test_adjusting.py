"""Biases, penalties, min_p, min_tokens: against transformers and numpy, in any batch, with unread tokens."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from fgengine.execution.adjusting import adjust
from fgengine.execution.device_tokens import DeviceTokens
from fgengine.execution.sampler import sample
from fgengine.ops.reference import TorchOps
from fgengine.request import Request, SamplingParams

OPS = TorchOps()

VOCAB = 40
EOS = (7, 9)
PLAIN = SamplingParams(max_tokens=100)


def request_of(params: SamplingParams, prompt: list[int], output: list[int], id: str = "r") -> Request:
    request = Request.new(id, prompt, params, 0.0)
    request.tokens.extend(output)
    return request


def logits_of(seed: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 4


def adjusted(logits: Tensor, *requests: Request) -> Tensor:
    changed = logits.clone()
    adjust(OPS, changed, requests, [request.num_generated for request in requests], EOS)
    return changed


def by_numpy(logits: Tensor, request: Request) -> Any:
    """Compute one row token by token, in the order of vLLM."""
    params = request.params
    values = logits.numpy().astype(np.float32).copy()
    output = request.tokens[request.prompt_len :]
    for token, bias in params.logit_bias:
        values[token] += np.float32(bias)
    for token in range(VOCAB):
        if token in request.tokens:
            repetition = np.float32(params.repetition_penalty)
            values[token] = values[token] / repetition if values[token] > 0 else values[token] * repetition
        values[token] -= np.float32(params.frequency_penalty) * np.float32(output.count(token))
        if token in output:
            values[token] -= np.float32(params.presence_penalty)
    if len(output) < params.min_tokens:
        for token in {*EOS, *params.stop_token_ids} & set(range(VOCAB)):
            values[token] = -np.inf
    if params.min_p > 0.0 and params.temperature > 0.0:
        tempered = values.astype(np.float64) / params.temperature
        shares = np.exp(tempered - tempered.max())
        values[shares < params.min_p * (1 - 1e-6)] = -np.inf
    elif params.min_p > 0.0:
        values[values < values.max()] = -np.inf
    return values


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    request = request_of(replace(PLAIN, repetition_penalty=1.7), [1, 2, 2, 30], [5, 5, 2])
    logits = logits_of(1)
    want = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([list(request.tokens)]), logits.clone())
    assert torch.equal(adjusted(logits, request), want)
    assert not torch.equal(want, logits)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("min_p", [0.02, 0.3, 1.0])
def test_min_p_is_that_of_transformers(temperature: float, min_p: float) -> None:
    request = request_of(replace(PLAIN, min_p=min_p, temperature=temperature), [1], [])
    for seed in range(20):
        logits = logits_of(seed)
        want = MinPLogitsWarper(min_p)(torch.tensor([[1]]), logits / temperature)
        got = adjusted(logits, request)
        assert torch.equal(got.isinf(), want.isinf())
        assert torch.equal(got[~got.isinf()], logits[~got.isinf()])


@pytest.mark.parametrize("generated", [0, 2, 3, 5])
def test_min_tokens_is_that_of_transformers(generated: int) -> None:
    request = request_of(replace(PLAIN, min_tokens=3), [1, 2], [4] * generated)
    logits = logits_of(2)
    processor = MinNewTokensLengthLogitsProcessor(2, 3, list(EOS), device="cpu")
    want = processor(torch.tensor([list(request.tokens)]), logits.clone())
    assert torch.equal(adjusted(logits, request), want)


def test_biases_are_those_of_transformers() -> None:
    request = request_of(replace(PLAIN, logit_bias=((3, 5.5), (8, -100.0), (0, 0.25))), [1], [])
    logits = logits_of(3)
    processor = SequenceBiasLogitsProcessor({(token,): bias for token, bias in request.params.logit_bias})
    assert torch.equal(adjusted(logits, request), processor(torch.tensor([[1]]), logits.clone()))


def test_openais_penalties_count_output_tokens_only() -> None:
    params = replace(PLAIN, presence_penalty=0.5, frequency_penalty=0.25)
    got = adjusted(torch.zeros(1, VOCAB), request_of(params, [1, 1, 2], [2, 3, 3, 3]))[0]
    assert got.nonzero().squeeze(1).tolist() == [2, 3]
    assert got[[2, 3]].tolist() == [-0.75, -1.25]


def test_min_tokens_forbids_stop_tokens_and_ignores_ids_outside_the_vocabulary() -> None:
    params = replace(PLAIN, min_tokens=2, stop_token_ids=(3, -1, VOCAB, 2**40))
    got = adjusted(logits_of(4), request_of(params, [1], [5]))
    assert got.isinf().nonzero().tolist() == [[0, 3], [0, 7], [0, 9]]


def some_params(source: random.Random) -> SamplingParams:
    """Return parameters with some features; the draw may be greedy."""
    fields: dict[str, Any] = {}
    if source.random() < 0.4:
        fields["repetition_penalty"] = source.choice([0.5, 1.1, 2.0])
    if source.random() < 0.4:
        fields["presence_penalty"] = source.choice([-2.0, 0.3, 2.0])
    if source.random() < 0.4:
        fields["frequency_penalty"] = source.choice([-0.3, 0.7])
    if source.random() < 0.3:
        fields["min_p"] = source.choice([0.01, 0.2])
    if source.random() < 0.3:
        fields["min_tokens"] = source.randrange(1, 8)
        fields["stop_token_ids"] = (source.randrange(VOCAB),)
    if source.random() < 0.3:
        tokens = source.sample(range(VOCAB), source.randrange(1, 6))
        fields["logit_bias"] = tuple((token, source.uniform(-9, 9)) for token in tokens)
    if source.random() < 0.3:
        fields |= {"top_k": 8, "top_p": 0.9}
    temperature = source.choice([0.0, 0.7, 1.5])
    return replace(PLAIN, temperature=temperature, seed=source.randrange(-(2**63), 2**63), **fields)


def some_requests(seed: int, count: int) -> list[Request]:
    source = random.Random(seed)
    return [
        request_of(
            some_params(source),
            [source.randrange(VOCAB) for _ in range(source.randrange(1, 9))],
            [source.randrange(VOCAB) for _ in range(source.randrange(9))],
            id=str(n),
        )
        for n in range(count)
    ]


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_all_together_equal_the_computation_by_numpy(seed: int) -> None:
    requests = [request for request in some_requests(seed, 9) if request.adjustment is not None]
    if requests:
        logits = logits_of(seed, len(requests))
        got = adjusted(logits, *requests)
        for row, request in enumerate(requests):
            np.testing.assert_allclose(got[row].numpy(), by_numpy(logits[row], request), rtol=2e-6, atol=2e-6)


@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=60, deadline=None)
def test_a_token_does_not_depend_on_the_batch(seed: int, dtype: torch.dtype) -> None:
    """Mixed batches, in any order. A request's token counts are kept from earlier steps, or counted again."""
    logits = logits_of(seed, 9).to(dtype)

    def tokens_of(order: list[int], requests: list[Request]) -> list[int]:
        chosen = [requests[row] for row in order]
        positions = [request.num_generated for request in chosen]
        tokens: list[int] = sample(TorchOps(), logits[order], chosen, positions, eos_token_ids=EOS).tolist()
        return tokens

    before = logits.clone()
    together = tokens_of(list(range(9)), requests := some_requests(seed, 9))
    assert torch.equal(logits, before)
    assert together == [tokens_of([row], some_requests(seed, 9))[0] for row in range(9)]
    order = random.Random(seed).sample(range(9), 5)
    assert tokens_of(order, requests) == [together[row] for row in order]


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_token_that_only_the_device_has_is_counted(seed: int) -> None:
    """The host has a zero in its place, as in a step that overlaps the one before."""
    logits, requests, unread = logits_of(seed, 9), some_requests(seed, 9), some_requests(seed, 9)
    newest = torch.zeros(12, dtype=torch.int64)
    places = {}
    source = random.Random(seed)
    for request, row in zip(unread, source.sample(range(12), 9), strict=True):
        if request.num_generated and source.random() < 0.8:
            newest[row] = request.tokens[-1]
            request.tokens[-1] = 0
            places[request] = (row, request.num_known - 1)
    positions = [request.num_generated for request in requests]
    want = sample(TorchOps(), logits, requests, positions, eos_token_ids=EOS)
    device_tokens = DeviceTokens(newest, places)
    got = sample(TorchOps(), logits, unread, positions, eos_token_ids=EOS, unread=device_tokens)
    assert torch.equal(got, want)
    changed = [row for row in range(9) if requests[row].adjustment is not None]
    if changed:
        parts = [logits[changed].clone(), logits[changed].clone()]
        here = [positions[row] for row in changed]
        adjust(OPS, parts[0], [requests[row] for row in changed], here, EOS)
        adjust(OPS, parts[1], [unread[row] for row in changed], here, EOS, device_tokens)
        assert torch.equal(*parts)


def test_an_unread_token_is_counted_once_when_it_has_been_read() -> None:
    request = request_of(replace(PLAIN, frequency_penalty=1.0), [1], [4, 0])
    logits = torch.zeros(1, VOCAB)
    adjust(OPS, logits, [request], [2], EOS, DeviceTokens(torch.tensor([4]), {request: (0, 2)}))
    assert logits[0, 4] == -2.0
    request.tokens[2] = 4
    request.tokens.append(6)
    got = adjusted(torch.zeros(1, VOCAB), request)[0]
    assert got[[0, 4, 6]].tolist() == [0.0, -2.0, -1.0]


def test_only_rows_with_a_feature_are_changed() -> None:
    """The others are sampled from the logits as they are: in their format, and all together."""
    seen: list[Tensor] = []

    class Watched(TorchOps):
        def sample(self, logits: Tensor, rows: Tensor) -> Tensor:
            seen.append(logits)
            return super().sample(logits, rows)

    logits = logits_of(5, 3).bfloat16()
    plain = [request_of(replace(PLAIN, seed=n), [1], []) for n in range(3)]
    sample(Watched(), logits, plain, [0, 0, 0])
    assert seen.pop() is logits
    for feature, dtype in (({"min_tokens": 2}, torch.bfloat16), ({"min_p": 0.1}, torch.float32)):
        plain[1] = request_of(replace(PLAIN, **feature), [1], [])
        sample(Watched(), logits, plain, [0, 1, 0], eos_token_ids=EOS)
        assert [part.dtype for part in seen] == [torch.bfloat16, dtype]
        assert torch.equal(seen[0], logits[[0, 2]])
        seen.clear()
    plain[1] = request_of(replace(PLAIN, min_tokens=2), [1], [])
    sample(Watched(), logits, plain, [0, 2, 0], eos_token_ids=EOS)
    assert seen.pop() is logits, "min_tokens are reached"


def test_a_negative_seed_is_one_of_its_own() -> None:
    logits = torch.zeros(1, 1000)
    tokens = [
        sample(TorchOps(), logits, [request_of(SamplingParams(seed=seed), [1], [])], [0]).item()
        for seed in (-1, 1, -(2**63), 2**63 - 1, 0)
    ]
    assert len(set(tokens)) == 5
    assert tokens[0] == sample(TorchOps(), logits, [request_of(SamplingParams(seed=-1), [2], [])], [0])


def test_min_p_removes_tokens_before_top_p() -> None:
    """As in vLLM: top_p is a share of what min_p leaves."""
    logits = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()
    params = SamplingParams(min_p=0.5, top_p=0.6)
    drawn = {
        int(sample(TorchOps(), logits, [request_of(replace(params, seed=n), [1], [])], [0]))
        for n in range(60)
    }
    assert drawn == {0}
    assert math.isclose(0.5 / 0.8, 0.625)  # so top_p = 0.6 needs the first token only
