"""Output does not depend on other requests, preemption, offloading, chunked prefill or the policy.

The tests run real models (tiny random weights, float32) in the same engine that serves.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple, get_args

import pytest
import torch
from torch import Tensor
from transformers import MinNewTokensLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor

from fgengine.clock import WallClock
from fgengine.config import Admission, Offloading
from fgengine.cost import CostModel
from fgengine.engine import Engine, RequestRefused
from fgengine.execution import prompt_passes
from fgengine.execution.runner import TorchRunner
from fgengine.kv.manager import KVManager
from fgengine.model.loader import load
from fgengine.model.shape import ModelShape
from fgengine.ops.select import ops_for
from fgengine.plan import PlanItem, StepPlan, StepResult, TokenEvent
from fgengine.prompt_logprobs import TopTokens
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import Policy, PolicyContext, Priority, make_policy, policy_names
from fgengine.scheduling.predictor import Noisy
from fgengine.scheduling.scheduler import Scheduler
from fgengine.scheduling.step_builder import Limits

SHAPES = {
    "llama": ModelShape("llama", 256, 48, 96, 2, 6, 2, 8, 256, tied_embeddings=False),
    "opt": ModelShape("opt", 256, 48, 96, 2, 4, 4, 12, 256, tied_embeddings=False, activation="relu"),
}
COST = CostModel(step=0.001, prefill_token=0.0002, decode_request=0.0001)


class Shuffled(Policy):
    """A policy with a new random order at every step, for the maximum of preemptions."""

    def __init__(self, context: PolicyContext) -> None:
        super().__init__(context)
        self.random = random.Random(7)
        self.requests: dict[str, Request] = {}
        self.places: dict[str, int] = {}

    def add(self, request: Request, now: float) -> None:
        self.requests[request.id] = request

    def remove(self, request: Request) -> None:
        del self.requests[request.id]

    def order(self, now: float) -> Iterator[Request]:
        shuffled = self.random.sample(list(self.requests.values()), len(self.requests))
        self.places = {request.id: place for place, request in enumerate(shuffled)}
        return iter(shuffled)

    def priority(self, request: Request) -> Priority:
        return (self.places.get(request.id, len(self.places)),)


class Poisoning(TorchRunner):
    """A runner that overwrites every free device block with NaN before each step, to reveal wrong reads."""

    kv: KVManager
    num_pieces = 0
    """Number of items that did not compute the last known token."""

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        self.num_pieces += sum(not item.yields_token for item in plan.items)
        held = torch.zeros(self.num_device_blocks, dtype=torch.bool)
        for item in plan.items:
            for block in item.blocks[: self.kv.blocks_for(max(item.start, 1))]:
                held[block] = True
        free = torch.tensor(self.kv.device._free, dtype=torch.int64)
        self.pool[free[~held[free]]] = float("nan")
        return super().launch(plan)


def build(
    family: str,
    policy: str | type[Policy],
    *,
    device_blocks: int = 60,
    host_blocks: int = 60,
    max_batch_size: int = 4,
    max_tokens_per_batch: int = 256,
    offloading: Offloading = "reactive",
    admission: Admission = "guarded",
    chunked_prefill: bool = False,
    overlap: bool = False,
    graphs: bool = False,
) -> Engine:
    shape = SHAPES[family]
    model = load(shape, None, torch.device("cpu"), torch.float32, 11)
    with torch.no_grad():
        model.embedding.mul_(40)  # spread the logits: with small random weights they are nearly equal
    model.ops = ops_for(torch.device("cpu"), torch.float32)
    runner = Poisoning(
        model,
        block_size=8,
        num_device_blocks=device_blocks,
        num_host_blocks=host_blocks,
        max_model_len=shape.max_position,
    )
    if graphs:
        runner.capture_graphs(max_batch_size, capture=lambda launches: launches)
    runner.kv = KVManager(device_blocks, host_blocks, 8)
    context = PolicyContext(COST, starvation_limit=0.05, max_batch_size=max_batch_size, predictor=Noisy(1.0))
    scheduler = Scheduler(
        make_policy(policy, context) if isinstance(policy, str) else policy(context),
        runner.kv,
        Limits(
            max_tokens_per_batch,
            shape.max_position,
            chunked_prefill,
            block_bytes=runner.block_bytes,
        ),
        offloading=offloading,
        admission=admission,
        cost=COST,
    )
    return Engine(scheduler, runner, runner.copies, WallClock(), vocab_size=shape.vocab_size, overlap=overlap)


def prompts() -> list[list[int]]:
    source = random.Random(3)
    return [[source.randrange(256) for _ in range(n)] for n in (1, 8, 9, 16, 23, 37)]


def params() -> SamplingParams:
    return SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)


@cache
def alone(family: str) -> list[list[int]]:
    """Return the tokens of each prompt served alone in an engine with large pools."""
    engine = build(family, "fcfs")
    return [engine.generate([prompt], params())[0].tokens for prompt in prompts()]


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.slow
def test_the_reference_outputs_differ(family: str) -> None:
    outputs = [tuple(tokens[-16:]) for tokens in alone(family)]
    assert len(set(outputs)) > 4
    assert len({token for output in outputs for token in output}) > 20


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("policy", ["fcfs", "mlfq", "sj-mlfq", "srpt", Shuffled])
@pytest.mark.parametrize(
    ("memory", "settings"),
    [
        ("ample", {}),
        ("offload", {"device_blocks": 12}),
        ("proactive", {"device_blocks": 16, "offloading": "proactive"}),
        ("recompute", {"device_blocks": 12, "host_blocks": 0, "offloading": "recompute"}),
        ("both", {"device_blocks": 10, "host_blocks": 9}),
        ("eager", {"device_blocks": 10, "host_blocks": 9, "admission": "eager"}),
        ("chunks", {"device_blocks": 12, "host_blocks": 6, "max_tokens_per_batch": 10}),
    ],
)
@pytest.mark.parametrize(
    ("overlap", "graphs"), [(False, False), (True, False), (True, True)], ids=["", "overlap", "graphs"]
)
@pytest.mark.slow
def test_greedy_tokens_equal_those_of_each_request_alone(
    family: str,
    policy: str | type[Policy],
    memory: str,
    settings: dict[str, int],
    overlap: bool,
    graphs: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = build(family, policy, overlap=overlap, graphs=graphs, **settings)  # type: ignore[arg-type]
    if policy is Shuffled:  # disable pressure, which would use the order of arrival
        monkeypatch.setattr(engine.scheduler.residency.pressure, "_is_short", lambda unfinished: False)
    done = engine.generate(prompts(), params())
    assert [request.tokens for request in done] == alone(family)
    while engine.has_work:
        engine.step()
    engine.scheduler.kv.check()
    stats = engine.stats()
    assert stats["free_device_blocks"] == stats["num_device_blocks"]
    if policy is Shuffled:
        # Without host blocks, requests start only if blocks are free, so fewer are preempted.
        assert stats["preemptions"] > (4 if memory == "recompute" else 8)
        assert memory == "ample" or stats["offloaded_blocks"] + stats["recomputed_tokens"] > 8
    engine.close()


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("policy", policy_names())
@pytest.mark.parametrize("offloading", get_args(Offloading))
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.slow
def test_every_policy_with_every_offloading_keeps_the_tokens_under_pressure(
    family: str, policy: str, offloading: Offloading, chunked: bool
) -> None:
    """The six requests need 14 blocks in their first steps and 24 in their last; the pool has 10."""
    engine = build(
        family,
        policy,
        device_blocks=10,
        max_batch_size=6,
        max_tokens_per_batch=12 if chunked else 256,
        offloading=offloading,
        chunked_prefill=chunked,
    )
    requests = [engine.add(str(i), prompt, params()) for i, prompt in enumerate(prompts())]
    short_of_memory = False
    while engine.has_work:
        engine.step()
        short_of_memory = short_of_memory or engine.scheduler.kv.device.num_free < 3
    assert [list(request.tokens) for request in requests] == alone(family)
    stats, runner = engine.stats(), engine.runner
    assert isinstance(runner, Poisoning)
    assert (runner.num_pieces > 0) == chunked
    moved, recomputed = stats["offloaded_blocks"], stats["recomputed_tokens"]
    assert short_of_memory
    assert (moved + recomputed > 0) == (offloading != "none")
    assert moved == 0 or offloading != "recompute"
    engine.close()


@pytest.mark.slow
def test_seeded_sampling_is_the_same_under_preemption() -> None:
    sampled = SamplingParams(max_tokens=12, temperature=0.9, top_p=0.95, top_k=50, seed=5, ignore_eos=True)
    expected = build("llama", "fcfs").generate(prompts(), sampled)
    small = {"device_blocks": 10, "host_blocks": 5, "max_batch_size": 3}
    for overlap in (False, True):
        done = build("llama", Shuffled, overlap=overlap, graphs=overlap, **small).generate(prompts(), sampled)
        assert [r.tokens for r in expected] == [r.tokens for r in done]


class Outcome(NamedTuple):
    """What a client sees of a request."""

    tokens: list[int]
    logprobs: list[float]
    top: list[TopTokens]
    prompt: list[tuple[float, TopTokens]] | None


def features(family: str) -> list[SamplingParams]:
    """Return the parameters of each prompt: most have features, and one has none.

    The model's answers hardly repeat a token, so there are penalties that make it do so.
    """
    first_tokens = tuple({tokens[-16] for tokens in alone(family)})  # plain greedy answers begin with these
    greedy, drawn = params(), replace(params(), temperature=0.9, seed=-5)
    return [
        replace(greedy, repetition_penalty=0.6, logprobs=True, top_logprobs=4, prompt_logprobs=2),
        greedy,
        replace(drawn, presence_penalty=-2.0, frequency_penalty=0.5, prompt_logprobs=0),
        replace(greedy, min_tokens=9, stop_token_ids=first_tokens, prompt_logprobs=20),
        replace(drawn, min_p=0.8, logit_bias=((3, 0.3), (90, -100.0)), logprobs=True, top_logprobs=20),
        replace(greedy, frequency_penalty=-0.1, logprobs=True, prompt_logprobs=5),
    ]


def outcome(request: Request) -> Outcome:
    prompt = request.prompt_logprobs
    entries = None if prompt is None else list(prompt.entries())
    return Outcome(list(request.tokens), request.logprobs, request.top_logprobs, entries)


def serve(engine: Engine, wanted: list[SamplingParams]) -> list[Outcome]:
    """Serve all prompts together and check the events: the prompt comes with the first token, once."""
    requests = [
        engine.add(f"{n}", prompt, one) for n, (prompt, one) in enumerate(zip(prompts(), wanted, strict=True))
    ]
    events: dict[str, list[TokenEvent]] = {request.id: [] for request in requests}
    while engine.has_work:
        for event in engine.step():
            events[event.request.id].append(event)
            assert event.prompt is None or len(event.prompt) == event.request.prompt_len - 1
    for request in requests:
        found = events[request.id]
        assert [event.prompt for event in found] == [request.prompt_logprobs] + [None] * (len(found) - 1)
        assert [event.top for event in found if event.top is not None] == request.top_logprobs
        assert [event.logprob for event in found if event.logprob is not None] == request.logprobs
    return [outcome(request) for request in requests]


@cache
def alone_with_features(family: str) -> list[Outcome]:
    """Return the outcome of each prompt with its features, served alone in an engine with large pools."""
    engine = build(family, "fcfs")
    pairs = zip(prompts(), features(family), strict=True)
    return [outcome(engine.generate([prompt], one)[0]) for prompt, one in pairs]


def same(found: list[TopTokens], wanted: list[TopTokens]) -> bool:
    """Whether the tokens are the same and their log probabilities equal but for rounding."""
    tokens = [[token for token, _ in top] for top in found]
    values = [value for top in found for _, value in top]
    return tokens == [[token for token, _ in top] for top in wanted] and values == pytest.approx(
        [value for top in wanted for _, value in top], abs=1e-4
    )


@pytest.mark.parametrize("policy", ["sj-mlfq", Shuffled])
@pytest.mark.parametrize(
    ("memory", "settings"),
    [
        ("ample", {}),
        ("offload", {"device_blocks": 12}),
        ("recompute", {"device_blocks": 12, "host_blocks": 0, "offloading": "recompute"}),
        ("both", {"device_blocks": 10, "host_blocks": 9}),
        ("chunks", {"device_blocks": 12, "host_blocks": 6, "max_tokens_per_batch": 10}),
        ("chunked", {"device_blocks": 14, "max_tokens_per_batch": 8, "chunked_prefill": True}),
    ],
)
@pytest.mark.parametrize(
    ("overlap", "graphs"), [(False, False), (True, False), (True, True)], ids=["", "overlap", "graphs"]
)
@pytest.mark.slow
def test_features_give_the_same_in_any_batch(
    policy: str | type[Policy],
    memory: str,
    settings: dict[str, int],
    overlap: bool,
    graphs: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = alone_with_features("llama")
    monkeypatch.setattr(prompt_passes, "POSITIONS", 7)
    engine = build("llama", policy, overlap=overlap, graphs=graphs, **settings)  # type: ignore[arg-type]
    if policy is Shuffled:
        monkeypatch.setattr(engine.scheduler.residency.pressure, "_is_short", lambda unfinished: False)
    for found, want in zip(serve(engine, features("llama")), wanted, strict=True):
        assert found.tokens == want.tokens
        assert found.logprobs == pytest.approx(want.logprobs, abs=1e-4)
        assert same(found.top, want.top)
        if want.prompt is None:
            assert found.prompt is None
        else:
            assert found.prompt is not None
            assert [value for value, _ in found.prompt] == pytest.approx(
                [value for value, _ in want.prompt], abs=1e-4
            )
            assert same([top for _, top in found.prompt], [top for _, top in want.prompt])
    if policy is Shuffled and memory == "recompute":
        assert engine.stats()["recomputed_tokens"] > 0
    engine.close()


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.slow
def test_features_are_those_of_a_computation_from_all_logits(family: str) -> None:
    """The logits of each complete sequence give every token and log probability once more."""
    engine = build(family, "fcfs")
    runner = engine.runner
    assert isinstance(runner, TorchRunner)
    for params, want, plain in zip(features(family), alone_with_features(family), alone(family), strict=True):
        length = len(want.tokens)
        prompt_len = length - 16 if params.ignore_eos and not params.stop_token_ids else len(plain) - 16
        request = Request.new("r", want.tokens, SamplingParams(max_tokens=1), 0.0)
        logits = runner.logits(StepPlan(0, [PlanItem(request, 0, length, range(length), True)]), True).float()
        logprobs = logits.log_softmax(-1)
        if want.prompt is not None:
            assert len(want.prompt) == prompt_len - 1
            for at, (logprob, top) in enumerate(want.prompt):
                assert logprob == pytest.approx(float(logprobs[at, want.tokens[at + 1]]), abs=1e-4)
                best = logprobs[at].topk(params.prompt_logprobs or 0)
                assert same([top], [list(zip(best.indices.tolist(), best.values.tolist(), strict=True))])
        for at in range(prompt_len, length):
            raw = logits[at - 1 : at]
            if params.logprobs:
                logprob = float(logprobs[at - 1, want.tokens[at]])
                assert want.logprobs[at - prompt_len] == pytest.approx(logprob, abs=1e-4)
            if params.top_logprobs:
                best = logprobs[at - 1].topk(params.top_logprobs)
                pairs = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
                assert same([want.top[at - prompt_len]], [pairs])
            if params.greedy:
                assert want.tokens[at] == _changed(raw, want.tokens[:at], prompt_len, params).argmax()
    engine.close()


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize(
    ("offloading", "overlap", "graphs", "max_tokens_per_batch"),
    [("reactive", False, False, 512), ("reactive", True, True, 96), ("none", True, False, 512)],
)
@pytest.mark.slow
def test_a_prompt_that_fills_the_context_and_the_pool_is_scored(
    family: str, offloading: Offloading, overlap: bool, graphs: bool, max_tokens_per_batch: int
) -> None:
    """Nothing comes after it, so it needs no further place."""
    length = SHAPES[family].max_position
    more = {"device_blocks": length // 8, "max_tokens_per_batch": max_tokens_per_batch}
    engine = build(family, "fcfs", offloading=offloading, overlap=overlap, graphs=graphs, **more)
    source = random.Random(4)
    prompt = [source.randrange(256) for _ in range(length)]
    scored = replace(params(), max_tokens=1, prompt_logprobs=1, no_output=True)
    with pytest.raises(RequestRefused, match=rf"make {length + 1}; the limit is {length} "):
        engine.add("with output", prompt, replace(scored, no_output=False))
    with pytest.raises(RequestRefused, match=rf"max_tokens 0 make {length + 1}; the limit is {length} "):
        engine.add("longer", [*prompt, 5], scored)
    requests = engine.generate([prompt, prompt], scored)
    runner = engine.runner
    assert isinstance(runner, TorchRunner)
    whole = Request.new("r", prompt, SamplingParams(max_tokens=1), 0.0)
    plan = StepPlan(0, [PlanItem(whole, 0, length, range(length // 8), True)])
    logprobs = runner.logits(plan, True).float().log_softmax(-1)
    wanted = logprobs[torch.arange(length - 1), torch.tensor(prompt[1:])].tolist()
    for request in requests:
        assert request.finish_reason == "length"
        assert request.prompt_logprobs is not None
        found = [value for value, _ in request.prompt_logprobs.entries()]
        assert found == pytest.approx(wanted, abs=1e-4)
    engine.close()


def _changed(logits: Tensor, tokens: list[int], prompt_len: int, params: SamplingParams) -> Tensor:
    """Apply the features of greedy requests with transformers' processors, and OpenAI's penalties."""
    known = torch.tensor([tokens])
    logits = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(known, logits.clone())
    if params.min_tokens:
        ends = [2, *params.stop_token_ids]
        forbid = MinNewTokensLengthLogitsProcessor(prompt_len, params.min_tokens, ends, device="cpu")
        logits = forbid(known, logits)
    counts = torch.bincount(torch.tensor(tokens[prompt_len:], dtype=torch.int64), minlength=256)
    return (logits - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)).squeeze(0)


def test_features_change_the_tokens() -> None:
    """Otherwise the tests above would show little."""
    plain, changed = alone("llama"), alone_with_features("llama")
    assert [tokens == found.tokens for tokens, found in zip(plain, changed, strict=True)] == [
        *(False, True, False, False, False, False)
    ]
    for n in (0, 2, 5):
        output = changed[n].tokens[len(prompts()[n]) :]
        assert 1 < len(set(output)) < 16
    stops = features("llama")[3].stop_token_ids
    output = changed[3].tokens[16:]
    assert not set(output[:9]) & set(stops)
    assert plain[3][16] in stops
    assert all(token != 90 for token in changed[4].tokens[23:])
