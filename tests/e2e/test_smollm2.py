"""Tests of the default model: it is downloaded, compared with transformers, and served."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from fgengine import Engine, EngineConfig, SamplingParams
from fgengine.execution.create import create_runner
from fgengine.model.catalog import shape_of
from fgengine.model.store import pull
from fgengine.ops.cpu.linear import pack_linear
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request
from fgengine.text import TextCodec

NAME = "smollm2-135m"
TEXT = (
    "A scheduling policy decides which request runs next. First come, first served lets a long answer hold "
    "up every short one behind it; a feedback queue lets the short ones pass, without knowing who is short."
)


@pytest.fixture(scope="module")
def folder() -> Path:
    return pull(NAME)


def config(**settings: object) -> EngineConfig:
    values = {"model": NAME, "device": "cpu", "dtype": "float32", "policy": "fcfs", **settings}
    return EngineConfig(**values)  # type: ignore[arg-type]


def test_logits_equal_transformers_at_every_position(folder: Path) -> None:
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    assert len(ids) > 40
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = reference(torch.tensor([ids])).logits[0]
    runner = create_runner(config(num_device_blocks=16, swap_space=0), shape_of(NAME), folder)
    request = Request.new("a", ids, SamplingParams(), 0.0)
    blocks = (3, 0, 7, 5, 1)[: -(-len(ids) // 16)]
    plan = StepPlan(0, [PlanItem(request, 0, len(ids), blocks, True)])
    torch.testing.assert_close(runner.logits(plan, everywhere=True), expected, atol=2e-3, rtol=1e-4)
    runner.close()


def exact_dtypes() -> list[str]:
    """Return the dtypes with results that do not depend on the batch.

    float32, and bfloat16 if our own kernels are used: the order of their sums does not depend on the batch.
    """
    packed = pack_linear(torch.ones(32, 32, dtype=torch.bfloat16), None)
    return ["float32", "bfloat16"] if packed is not None else ["float32"]


def test_a_chat_is_answered_and_ends(folder: Path) -> None:
    codec = TextCodec.load(folder)
    engine = Engine.from_config(config(num_device_blocks=60))
    prompt = codec.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    (answer,) = engine.generate([prompt], SamplingParams(max_tokens=24, temperature=0.0))
    engine.close()
    assert answer.finish_reason == "stop"
    assert "Paris" in codec.decode(answer.tokens[answer.prompt_len :])


@pytest.mark.parametrize("dtype", exact_dtypes())
def test_answers_are_the_same_under_memory_pressure(folder: Path, dtype: str) -> None:
    codec = TextCodec.load(folder)
    questions = ["What is the capital of France?", "What is the capital of Italy?", "Name three colors."]
    prompts = [codec.encode_chat([{"role": "user", "content": question}]) for question in questions]
    params = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
    ample = Engine.from_config(config(dtype=dtype, num_device_blocks=60))
    alone = [ample.generate([prompt], params)[0] for prompt in prompts]
    ample.close()
    for swap_space in (2**28, 0):
        settings = {"dtype": dtype, "num_device_blocks": 10, "max_batch_size": 3}
        tight = Engine.from_config(config(swap_space=swap_space / 2**30, **settings))
        crowd = tight.generate([*prompts, *reversed(prompts)], params)
        assert tight.stats()["offloaded_blocks" if swap_space else "recomputed_tokens"] > 0
        tight.close()
        assert [r.tokens for r in crowd] == [r.tokens for r in [*alone, *reversed(alone)]]
