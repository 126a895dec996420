"""A step as one program against the same operations one by one: the same bits."""

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
    "opt, norms behind, projected": ModelShape(
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
    """A request for each (start, new tokens), each with blocks of its own."""
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
def test_a_program_computes_what_its_operations_do(name: str, dtype: str) -> None:
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


def test_an_engine_s_step_is_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the model's operations one by one, and with as many threads as the machine allows then."""
    runner = runner_of(LLAMA, "float32")
    plan = plan_of(STEPS["a mixture"])
    want = runner.logits(plan).max(-1).indices.tolist()
    looks: list[None] = []
    assert runner._threads is not None
    monkeypatch.setattr(runner._threads, "adapt", lambda: looks.append(None))
    monkeypatch.setattr(runner.model, "forward", lambda *arguments: pytest.fail("one by one"))
    assert list(runner.execute(plan).tokens.values()) == [want[int(item)] for item in ("0", "1", "2", "3")]
    assert len(looks) == 1


def test_more_threads_than_cores_compute_the_same() -> None:
    """Threads that are late find the work done by others; none is done twice, and none is left out."""
    runner = runner_of(LLAMA, "float32")
    plan = plan_of(STEPS["a mixture"])
    want = runner.logits(plan)
    try:
        torch.set_num_threads(16)
        for _ in range(30):
            assert torch.equal(runner.logits(plan), want)
    finally:
        torch.set_num_threads(2)


def test_another_pool_of_the_same_layout_will_do() -> None:
    runner = runner_of(LLAMA, "float32")
    plan = plan_of(STEPS["decodes"])
    want = runner.logits(plan)
    content = runner.pool.clone()
    with runner.larger_pool(500):
        runner.pool[: len(content)] = content
        assert torch.equal(runner.logits(plan), want)


def test_logits_stay_when_the_next_step_is_computed() -> None:
    runner = runner_of(LLAMA, "float32")
    first = runner.logits(plan_of(STEPS["decodes"]))
    kept = first.clone()
    runner.logits(plan_of(STEPS["a mixture"]))
    assert torch.equal(first, kept)


def test_memory_is_shared_by_layers() -> None:
    """A program's memory does not grow with its layers, and holds no logits of a prompt's tokens."""
    few, many = (runner_of(replace(LLAMA, num_layers=layers), "float32") for layers in (2, 12))
    sizes = []
    for runner in (few, many):
        assert runner.program is not None
        runner.logits(plan_of(STEPS["a prompt"]))
        sizes.append(runner.program.num_bytes)
    assert sizes[0] == sizes[1] > 0
    widths = 4 * LLAMA.hidden_size + 2 * (4 + 2 * 2) * 32 + 3 * LLAMA.intermediate_size
    assert sizes[0] <= 150 * (widths + 6 * 32) * 4


def test_what_our_kernels_do_not_compute_is_no_program() -> None:
    """A head size that no vector divides, and operations of plain torch."""
    odd = runner_of(replace(LLAMA, hidden_size=60, num_heads=5, num_kv_heads=5, head_dim=12), "float32")
    assert odd.program is None
    assert odd.logits(plan_of(STEPS["a mixture"])).isfinite().all()
    plain = runner_of(LLAMA, "float32")
    plain.model.ops = TorchOps()
    assert record(plain.model, plain.pool) is None


def test_a_model_is_as_it_was_after_recording() -> None:
    runner = runner_of(LLAMA, "float32")
    ops = runner.model.ops
    assert record(runner.model, runner.pool) is not None
    assert runner.model.ops is ops
