"""The ranges of sampling parameters, and what an engine refuses because of its model or device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from fgengine.adjustment import TokenCounts
from fgengine.config import EngineConfig
from fgengine.engine import Engine, RequestRefused
from fgengine.request import Request, SamplingParams

Build = Callable[..., Engine]
RANGES: list[tuple[str, list[Any], list[Any]]] = [
    ("min_p", [0.0, 0.5, 1.0], [-0.1, 1.01, math.nan]),
    ("min_tokens", [0, 16], [-1, 17]),
    ("presence_penalty", [-2.0, 0.0, 2.0], [-2.1, 2.1, math.nan, math.inf]),
    ("frequency_penalty", [-2.0, 0.0, 2.0], [-2.1, 2.1, math.nan]),
    ("repetition_penalty", [0.01, 1.0, 10.0], [0.0, -1.0, 10.1, math.nan]),
    ("seed", [-(2**63), -1, 0, 2**63 - 1, None], [-(2**63) - 1, 2**63]),
    ("prompt_logprobs", [None, 0, 20], [-1, 21]),
    ("top_logprobs", [0], [-1, 21, 1]),
    (
        "logit_bias",
        [(), ((5, -100.0), (6, 100.0)), tuple((token, 1.0) for token in range(1024))],
        [
            ((5, 100.5),),
            ((5, math.nan),),
            ((5, 1.0), (5, 2.0)),
            tuple((token, 1.0) for token in range(1025)),
        ],
    ),
]


@pytest.mark.parametrize(("name", "valid", "invalid"), RANGES, ids=[name for name, _, _ in RANGES])
def test_a_value_out_of_range_is_refused_with_the_fields_name(
    name: str, valid: list[Any], invalid: list[Any]
) -> None:
    for value in valid:
        assert getattr(SamplingParams(**{name: value}), name) == value
    for value in invalid:
        with pytest.raises(ValueError, match=f"^{name} "):
            SamplingParams(**{name: value})


def test_top_logprobs_need_logprobs() -> None:
    assert SamplingParams(logprobs=True, top_logprobs=20).top_logprobs == 20
    with pytest.raises(ValueError, match="top_logprobs needs logprobs"):
        SamplingParams(top_logprobs=1)


def test_all_fields_pass_through_a_message() -> None:
    params = SamplingParams(
        min_p=0.1,
        min_tokens=3,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.2,
        logit_bias=((3, 1.5), (4, -2.0)),
        seed=-(2**63),
        logprobs=True,
        top_logprobs=5,
        prompt_logprobs=0,
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


@pytest.mark.parametrize(
    ("params", "until"),
    [
        (SamplingParams(), None),
        (SamplingParams(top_k=5, top_p=0.5, seed=1, logprobs=True, top_logprobs=3), None),
        (SamplingParams(prompt_logprobs=3), None),
        (SamplingParams(min_tokens=3), 3),
        (SamplingParams(min_tokens=3, min_p=0.1), 2**31),
        (SamplingParams(logit_bias=((1, 0.5),)), 2**31),
        (SamplingParams(repetition_penalty=0.9), 2**31),
    ],
)
def test_only_requests_that_change_logits_have_an_adjustment(
    params: SamplingParams, until: int | None
) -> None:
    adjustment = Request.new("r", [1], params, 0.0).adjustment
    assert (None if adjustment is None else adjustment.until) == until


def test_each_token_is_counted_once() -> None:
    counts = TokenCounts(3, with_prompt=True)
    tokens = [7, 8, 7, 9, 7, 9, 9]
    for end in (4, 4, 2, 7, 7):
        counts.count(tokens, end)
    assert (counts.tokens.tolist(), counts.counts.tolist()) == ([7, 8, 9], [1, 0, 3])
    counts = TokenCounts(3, with_prompt=False)
    counts.count(tokens, 5)
    assert (counts.tokens.tolist(), counts.counts.tolist()) == ([9, 7], [1, 1])


@pytest.mark.parametrize("token", [-1, 2000, 2**40])
def test_a_bias_of_a_token_outside_the_vocabulary_is_refused(symbolic_engine: Build, token: int) -> None:
    engine = symbolic_engine()
    engine.add("good", [1], SamplingParams(logit_bias=((0, 1.0), (1999, 1.0))))
    with pytest.raises(RequestRefused, match=rf"^logit_bias has the token {token}: .* 0 \.\. 1999") as error:
        engine.add("bad", [1], SamplingParams(logit_bias=((0, 1.0), (token, 1.0))))
    assert error.value.field == "logit_bias"


def test_min_tokens_that_forbid_every_token_are_refused(symbolic_engine: Build) -> None:
    engine = symbolic_engine(eos=frozenset({0}))
    engine.add("good", [1], SamplingParams(min_tokens=1, stop_token_ids=(-1, *range(2, 3000))))
    with pytest.raises(RequestRefused, match=r"^min_tokens cannot be met") as error:
        engine.add("bad", [1], SamplingParams(min_tokens=1, stop_token_ids=tuple(range(1, 2000))))
    assert error.value.field == "min_tokens"


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 0.5},
        {"frequency_penalty": -0.5},
        {"repetition_penalty": 1.1},
        {"logit_bias": ((1, 1.0),)},
        {"top_logprobs": 1, "logprobs": True},
        {"prompt_logprobs": 0},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_device_that_computes_no_logits_refuses_what_needs_them(fields: dict[str, Any]) -> None:
    engine = Engine.from_config(EngineConfig(model="opt-125m", device_spec="a100-40gb", policy="fcfs"))
    name = next(iter(fields))
    reason = f"^{name} needs the model's logits, .* leave {name} out$"
    with pytest.raises(RequestRefused, match=reason) as error:
        engine.add("a", [1, 2], SamplingParams(**fields))
    assert error.value.field == name
    engine.add("a", [1, 2], SamplingParams(min_p=0.1, min_tokens=16, seed=-1, logprobs=True))
    engine.close()
