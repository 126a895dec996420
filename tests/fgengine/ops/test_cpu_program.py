"""A step as one program gives bit for bit the same result as its operations one by one."""

import random
from dataclasses import replace

import pytest
import torch

from fgengine.config import EngineConfig
from fgengine.execution.create import create_runner
from fgengine.execution.runner import TorchRunner
from fgengine.model.shape import ModelShape
from fgengine.ops.cpu.program import record
from fgengine.ops.reference import TorchOps
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request, SamplingParams

LLAMA = ModelShape("llama", 96, 64, 96, 3, 4, 2, 32, 512, tied_embeddings=True)
SHAPES = {
    "llama": LLAMA,
    "llama, biased, untied": ModelShape(
        "llama", 97, 64, 96, 2, 4, 4, 32, 512, tied_embeddings=False, qkv_bias=True
    ),
    "opt": ModelShape("opt", 96, 64, 128, 3, 2, 2, 32, 512, tied_embeddings=True),
    "opt, post-norm, projected": ModelShape(
        "opt", 96, 64, 128, 2, 2, 2, 32, 512, tied_embeddings=True, pre_norm=False, embed_dim=32
    ),
}
STEPS = {
    "one token": [(0, 1)],
    "decodes": [(7 * place, 1) for place in range(16)],
    "a prompt": [(0, 150)],
    "a mixture": [(0, 1), (40, 1), (0, 200), (33, 70)],
}
BLOCK_SIZE = 16
PARAMS = SamplingParams(max_tokens=8, temperature=0.0)


def runner_of(shape: ModelShape, dtype: str) -> TorchRunner:
    torch.set_num_threads(2)
    config = EngineConfig(
        device="cpu", dtype=dtype, num_device_blocks=120, swap_space=0, block_size=BLOCK_SIZE
    )
    runner = create_runner(config, shape, None)
    runner.pool.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(0))
    return runner


def plan_of(sizes: list[tuple[int, int]], vocab: int = 96) -> StepPlan:
    """Plan a step with one request for each (start, new tokens), each with its own blocks."""
    draw = random.Random(0)
    items, first = [], 0
    for index, (start, new) in enumerate(sizes):
        request = Request.new(str(index), [draw.randrange(vocab) for _ in range(start + new)], PARAMS, 0.0)
        request.num_computed = start
        count = -(-(start + new) // BLOCK_SIZE)
        items.append(PlanItem(request, start, new, range(first, first + count), True))
        first += count
    return StepPlan(0, items)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.slow
def test_a_program_computes_the_same_as_its_operations(name: str, dtype: str) -> None:
    runner = runner_of(SHAPES[name], dtype)
    program, before = runner.program, runner.pool.clone()
    assert program is not None
    for sizes in (*STEPS.values(), STEPS["one token"]):
        plan = plan_of(sizes)
        runner.program, _ = None, runner.pool.copy_(before)
        want, stored = runner.logits(plan), runner.pool.clone()
        runner.program, _ = program, runner.pool.copy_(before)
        assert torch.equal(runner.logits(plan), want)
        assert torch.equal(runner.pool, stored)


def test_the_engine_runs_its_steps_as_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not run the operations one by one, and it adapts the number of threads before each step."""
    runner = runner_of(LLAMA, "float32")
    plan = plan_of(STEPS["a mixture"])
    want = runner.logits(plan).max(-1).indices.tolist()
    adapted: list[None] = []
    assert runner._threads is not None
    monkeypatch.setattr(runner._threads, "adapt", lambda: adapted.append(None))
    monkeypatch.setattr(runner.model, "forward", lambda *arguments: pytest.fail("one by one"))
    assert list(runner.execute(plan).tokens.values()) == [want[int(item)] for item in ("0", "1", "2", "3")]
    assert len(adapted) == 1


def test_more_threads_than_cores_compute_the_same() -> None:
    """If threads are late, others do their work. No work is done twice, and none is left out."""
    runner = runner_of(LLAMA, "float32")
    plan = plan_of(STEPS["a mixture"])
    want = runner.logits(plan)
    try:
        torch.set_num_threads(16)
        for _ in range(30):
            assert torch.equal(runner.logits(plan), want)
    finally:
        torch.set_num_threads(2)


def test_a_program_works_with_another_pool_of_the_same_layout() -> None:
    runner = runner_of(LLAMA, "float32")
    plan = plan_of(STEPS["decodes"])
    want = runner.logits(plan)
    content = runner.pool.clone()
    with runner.larger_pool(500):
        runner.pool[: len(content)] = content
        assert torch.equal(runner.logits(plan), want)


def test_the_next_step_does_not_overwrite_logits() -> None:
    runner = runner_of(LLAMA, "float32")
    first = runner.logits(plan_of(STEPS["decodes"]))
    copy = first.clone()
    runner.logits(plan_of(STEPS["a mixture"]))
    assert torch.equal(first, copy)


def test_memory_is_shared_by_layers() -> None:
    """A program's memory does not grow with the number of layers, and it holds no logits."""
    few, many = (runner_of(replace(LLAMA, num_layers=layers), "float32") for layers in (2, 12))
    sizes = []
    for runner in (few, many):
        assert runner.program is not None
        runner.logits(plan_of(STEPS["a prompt"]))
        sizes.append(runner.program.num_bytes)
    assert sizes[0] == sizes[1] > 0
    widths = 4 * LLAMA.hidden_size + 2 * (4 + 2 * 2) * 32 + 3 * LLAMA.intermediate_size
    assert sizes[0] <= 150 * (widths + 6 * 32) * 4


def test_no_program_is_recorded_for_unsupported_operations() -> None:
    """Unsupported are a head size that is no multiple of a vector, and operations of plain torch."""
    odd = runner_of(replace(LLAMA, hidden_size=60, num_heads=5, num_kv_heads=5, head_dim=12), "float32")
    assert odd.program is None
    assert odd.logits(plan_of(STEPS["a mixture"])).isfinite().all()
    plain = runner_of(LLAMA, "float32")
    plain.model.ops = TorchOps()
    assert record(plain.model, plain.pool) is None


def test_recording_does_not_change_the_model() -> None:
    runner = runner_of(LLAMA, "float32")
    ops = runner.model.ops
    assert record(runner.model, runner.pool) is not None
    assert runner.model.ops is ops
