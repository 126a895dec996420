"""A launch of a step never waits for the device and never mixes tensors of host and device.

torch's "meta" device replaces the GPU. Its tensors have sizes but no values. So reading a value on the host
raises an error, and so does an operation on a tensor of the host and one of the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fgengine.execution.runner import TorchRunner
from fgengine.model.loader import load
from fgengine.model.shape import ModelShape
from fgengine.ops.triton import activations, decode_attention, norms, prefill_attention, rope_kv, sampling
from fgengine.ops.triton.ops import TritonOps
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request, SamplingParams

DEVICE = torch.device("meta")
SHAPES = {
    "llama": ModelShape("llama", 96, 64, 96, 2, 4, 2, 16, 128, tied_embeddings=True),
    "opt": ModelShape("opt", 96, 64, 96, 2, 4, 4, 16, 128, tied_embeddings=True, activation="relu"),
    "opt, post-norm": ModelShape(
        "opt", 96, 64, 96, 2, 4, 4, 16, 128, True, embed_dim=32, pre_norm=False, activation="relu"
    ),
}
GREEDY = SamplingParams(max_tokens=8, temperature=0.0)
SAMPLED = SamplingParams(max_tokens=8, top_k=5, top_p=0.9)
ASKING = SamplingParams(max_tokens=8, temperature=0.0, logprobs=True)
FEATURES = SamplingParams(
    max_tokens=8,
    min_p=0.1,
    min_tokens=8,
    presence_penalty=0.5,
    repetition_penalty=1.1,
    logit_bias=((3, 1.0),),
    logprobs=True,
    top_logprobs=5,
    prompt_logprobs=3,
)
PENALIZED = SamplingParams(max_tokens=8, temperature=0.0, frequency_penalty=0.5)


class Kernel:
    """Replaces a Triton kernel: counts launches and checks that all tensors are on the device."""

    def __init__(self, name: str, launches: list[str]) -> None:
        self.name, self.launches = name, launches

    def __getitem__(self, grid: object) -> Kernel:
        return self

    def __call__(self, *arguments: Any, **options: Any) -> None:
        self.launches.append(self.name)
        on_host = [a for a in arguments if isinstance(a, torch.Tensor) and a.device != DEVICE]
        assert not on_host, f"{self.name} got a tensor of the host"


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    kernels = {
        norms: ["_norm"],
        rope_kv: ["_rope_kv"],
        activations: ["_silu_mul", "_bias_relu"],
        sampling: ["_sample"],
        decode_attention: ["_decode", "_combine"],
        prefill_attention: ["_prefill"],
    }
    for module, names in kernels.items():
        for name in names:
            monkeypatch.setattr(module, name, Kernel(name, made))
    return made


@pytest.fixture(params=SHAPES)
def runner(request: pytest.FixtureRequest) -> Iterator[TorchRunner]:
    model = load(SHAPES[request.param], None, torch.device("cpu"), torch.float16, 0).to(DEVICE)
    if hasattr(model, "rope"):
        model.rope = model.rope.to(DEVICE)
    model.ops = TritonOps()
    made = TorchRunner(model, block_size=16, num_device_blocks=40, num_host_blocks=0, max_model_len=128)
    assert made.device == DEVICE
    yield made
    made.close()


def items(*parts: tuple[int, int, int, SamplingParams]) -> list[PlanItem]:
    """Make items, each from (known tokens, start, tokens to compute, sampling parameters)."""
    made = []
    for n, (known, start, count, params) in enumerate(parts):
        request = Request.new(str(n), [1] * known, params, 0.0)
        made.append(PlanItem(request, start, count, list(range(10 * n, 10 * n + 8)), start + count == known))
    return made


MIXED = [(20, 0, 20, GREEDY), (33, 32, 1, SAMPLED), (60, 16, 30, GREEDY), (17, 16, 1, ASKING)]
WITH_FEATURES = [(90, 0, 90, FEATURES), (33, 32, 1, SAMPLED), (60, 16, 30, FEATURES), (17, 16, 1, PENALIZED)]
DECODES = [(20, 19, 1, GREEDY), (33, 32, 1, ASKING), (128, 127, 1, SAMPLED)]


@pytest.mark.parametrize(
    "parts",
    [MIXED, DECODES, WITH_FEATURES, [(40, 0, 10, GREEDY)], [(40, 0, 10, FEATURES)]],
    ids=["mixed", "decodes", "features", "a piece", "a piece with features"],
)
def test_a_launch_does_not_wait_for_the_device(
    runner: TorchRunner, launches: list[str], parts: list[tuple[int, int, int, SamplingParams]]
) -> None:
    runner.launch(StepPlan(0, items(*parts)))
    prompts = sum(part[2] for part in parts if part[3] is FEATURES)
    assert launches.count("_rope_kv") == (2 * (1 + -(-prompts // 64)) if len(parts) > 1 else 2)  # one a layer
    assert ("_prefill" in launches) == any(part[2] > 1 for part in parts)
    assert ("_decode" in launches) == any(part[2] == 1 for part in parts)
    draws = [known == start + n and params in (SAMPLED, FEATURES) for known, start, n, params in parts]
    assert ("_sample" in launches) == any(draws)


@pytest.mark.parametrize("kind", [SAMPLED, FEATURES, PENALIZED])
def test_a_launch_after_an_unread_step_does_not_wait_for_the_device(
    runner: TorchRunner, launches: list[str], kind: SamplingParams
) -> None:
    first = items(*DECODES, (100, 99, 1, kind))
    runner.launch(StepPlan(0, first))
    for item in first:
        item.request.tokens.append(0)
    runner.launch(StepPlan(1, [PlanItem(i.request, i.start + 1, 1, [*i.blocks, 9], True) for i in first]))
    assert launches.count("_sample") == (4 if kind is FEATURES else 2)  # one for each kind of rows


def test_a_replayed_graph_does_not_wait_for_the_device(runner: TorchRunner, launches: list[str]) -> None:
    replays = []
    runner.capture_graphs(8, capture=lambda captured: captured() or (lambda: replays.append(1)))
    launches.clear()
    first = items(*DECODES)
    runner.launch(StepPlan(0, first))
    for item in first:
        item.request.tokens.append(0)
    runner.launch(StepPlan(1, [PlanItem(i.request, i.start + 1, 1, [*i.blocks, 9], True) for i in first[:2]]))
    assert len(replays) == 2
    assert launches == ["_sample"]  # everything else is in the graph
