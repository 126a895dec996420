"""Our models, compared with transformers' in float32 at every position, with any division into steps."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fgengine.config import EngineConfig
from fgengine.execution.create import create_runner
from fgengine.execution.runner import TorchRunner
from fgengine.model.hf_config import shape_from_config
from fgengine.ops.reference import TorchOps
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request, SamplingParams

BLOCK = 8
GREEDY = SamplingParams(max_tokens=64, temperature=0.0)

LLAMA: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
OPT: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
VARIANTS: dict[str, tuple[type, Any]] = {
    "llama-gqa-untied": (LlamaForCausalLM, LlamaConfig(**LLAMA)),
    "llama-tied-3-to-1": (
        LlamaForCausalLM,
        LlamaConfig(
            **LLAMA | {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64},
            tie_word_embeddings=True,
        ),
    ),
    "llama-mha-80": (
        LlamaForCausalLM,
        LlamaConfig(**LLAMA | {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 80}),
    ),
    "llama-llama3-rope": (LlamaForCausalLM, LlamaConfig(**LLAMA, rope_parameters=LLAMA3)),
    "llama-linear-rope": (LlamaForCausalLM, LlamaConfig(**LLAMA, rope_parameters=LINEAR)),
    "llama-odd-head-dim": (LlamaForCausalLM, LlamaConfig(**LLAMA, head_dim=20)),
    "qwen2-bias": (Qwen2ForCausalLM, Qwen2Config(**LLAMA, use_sliding_window=False)),
    "opt-pre-norm": (OPTForCausalLM, OPTConfig(**OPT)),
    "opt-untied": (OPTForCausalLM, OPTConfig(**OPT, tie_word_embeddings=False)),
    "opt-post-norm-projected": (
        OPTForCausalLM,
        OPTConfig(**OPT | {"word_embed_proj_dim": 32}, do_layer_norm_before=False),
    ),
}


@pytest.fixture(params=sorted(VARIANTS), scope="module")
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return transformers' model, and our runner over the folder that it was saved to."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kind, config = VARIANTS[request.param]
    theirs = kind(config).eval()
    for name, value in theirs.named_parameters():
        # The initial values would hide errors: use biases other than 0, norms other than 1, different logits.
        value.data.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    theirs.tie_weights()
    folder: Path = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    shape = shape_from_config(json.loads((folder / "config.json").read_text()))
    config = EngineConfig(device="cpu", dtype="float32", block_size=BLOCK, num_device_blocks=96)
    runner = create_runner(config, shape, folder)
    yield theirs, runner
    runner.close()


def scrambled_requests(runner: TorchRunner, lengths: list[int], seed: int) -> list[tuple[Request, list[int]]]:
    """Make requests of random tokens, each with blocks scattered over a pool full of NaN."""
    rng = random.Random(seed)
    runner.pool.fill_(float("nan"))
    free = list(range(runner.num_device_blocks))
    rng.shuffle(free)
    made = []
    for n, length in enumerate(lengths):
        tokens = [rng.randrange(runner.shape.vocab_size) for _ in range(length)]
        blocks = [free.pop() for _ in range(-(-(length + 24) // BLOCK))]
        made.append((Request.new(str(n), tokens, GREEDY, 0.0), blocks))
    return made


def item(request: Request, blocks: list[int], num_tokens: int) -> PlanItem:
    start = request.num_computed
    return PlanItem(request, start, num_tokens, blocks, start + num_tokens == request.num_known)


def expected(theirs: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = theirs(torch.tensor([tokens])).logits[0]
    return logits


@pytest.mark.parametrize("ops", ["torch", "fastest"])
@pytest.mark.slow
def test_logits_at_every_position_in_random_steps(models: Any, ops: str) -> None:
    theirs, runner = models
    fastest = runner.model.ops
    if ops == "torch":
        runner.model.ops = TorchOps()
    try:
        for seed in range(3):
            rng = random.Random(seed)
            made = scrambled_requests(runner, [1, 7, 8, 9, 40, 97], seed)
            logits: dict[str, list[torch.Tensor]] = {request.id: [] for request, _ in made}
            while pending := [pair for pair in made if pair[0].num_pending]:
                # Seed 0 computes each prompt in one step. Other seeds take random chunks of random requests.
                batch = pending if seed == 0 else rng.sample(pending, rng.randint(1, len(pending)))
                sizes = [r.num_pending if seed == 0 else rng.randint(1, r.num_pending) for r, _ in batch]
                plan = StepPlan(0, [item(r, blocks, n) for (r, blocks), n in zip(batch, sizes, strict=True)])
                rows = runner.logits(plan, everywhere=True).split(sizes)
                for (request, _), size, part in zip(batch, sizes, rows, strict=True):
                    logits[request.id].append(part)
                    request.num_computed += size
            for request, _ in made:
                torch.testing.assert_close(
                    torch.cat(logits[request.id]), expected(theirs, request.tokens), atol=2e-4, rtol=1e-4
                )
    finally:
        runner.model.ops = fastest


@pytest.mark.slow
def test_greedy_decoding_in_a_changing_batch(models: Any) -> None:
    theirs, runner = models
    made = scrambled_requests(runner, [3, 20, 8, 33], seed=5)
    rng = random.Random(1)
    while unfinished := [pair for pair in made if pair[0].num_generated < 20]:
        batch = rng.sample(unfinished, rng.randint(1, len(unfinished)))
        items = [item(request, blocks, rng.randint(1, request.num_pending)) for request, blocks in batch]
        result = runner.execute(StepPlan(7, items))
        assert result.step == 7
        assert result.seconds > 0
        assert set(result.tokens) == {i.request.id for i in items if i.yields_token}
        for i in items:
            i.request.num_computed += i.num_tokens
            if i.yields_token:
                i.request.tokens.append(result.tokens[i.request.id])
    for request, _ in made:
        # One pass over the complete sequence: transformers must choose the same token at each position.
        chosen = expected(theirs, request.tokens).argmax(-1).tolist()
        assert request.tokens[request.prompt_len :] == chosen[request.prompt_len - 1 : -1]


def test_only_the_yielding_rows_have_logits(models: Any) -> None:
    _, runner = models
    made = scrambled_requests(runner, [9, 12, 5], seed=2)
    items = [item(request, blocks, n) for (request, blocks), n in zip(made, [9, 4, 5], strict=True)]
    every = runner.logits(StepPlan(0, items), everywhere=True)
    torch.testing.assert_close(runner.logits(StepPlan(0, items)), every[[8, 17]], atol=1e-5, rtol=1e-5)
    no_token = StepPlan(1, [items[1]])
    assert runner.logits(no_token).shape == (0, runner.shape.vocab_size)
    assert runner.execute(no_token).tokens == {}
    assert runner.execute(StepPlan(2)).tokens == {}
