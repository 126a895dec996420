"""Decode graphs without a GPU: a fake capture replays the launches by calling them again.

Everything that a step reads must be at the fixed addresses. On a GPU, the same tests capture real graphs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import torch

from fgengine.execution.device_tokens import DeviceTokens
from fgengine.execution.graphs import ALIGNED, Capture, DecodeInputs, batch_sizes, cuda_capture
from fgengine.execution.runner import TorchRunner
from fgengine.model.loader import load
from fgengine.model.shape import ModelShape
from fgengine.ops.select import ops_for
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request, SamplingParams

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = {
    "llama": ModelShape("llama", 96, 64, 96, 2, 4, 2, 16, 128, tied_embeddings=True),
    "opt": ModelShape("opt", 96, 64, 96, 2, 4, 4, 16, 128, tied_embeddings=True, activation="relu"),
}
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


class Captured:
    """Counts captures and replays."""

    def __init__(self) -> None:
        self.real = cuda_capture() if DEVICE.type == "cuda" else None
        self.captures = self.replays = 0

    def __call__(self, launches: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        repeat = self.real(launches) if self.real else launches

        def replay() -> None:
            self.replays += 1
            repeat()

        return replay


def runner_of(family: str) -> TorchRunner:
    model = load(SHAPES[family], None, DEVICE, torch.float32, 5)
    with torch.no_grad():
        model.embedding.mul_(40)
    model.ops = ops_for(DEVICE, torch.float32)
    return TorchRunner(model, block_size=8, num_device_blocks=80, num_host_blocks=0, max_model_len=128)


@pytest.fixture(params=SHAPES)
def runner(request: pytest.FixtureRequest) -> Iterator[TorchRunner]:
    made = runner_of(request.param)
    yield made
    made.close()


def decodes(runner: TorchRunner, contexts: list[int]) -> list[PlanItem]:
    """Make decodes with random KV on scattered blocks, the same for every call."""
    source = random.Random(1)
    runner.pool[: runner.num_device_blocks] = torch.randn(
        runner.pool[: runner.num_device_blocks].shape, generator=torch.Generator().manual_seed(2)
    ).to(DEVICE)
    free = source.sample(range(runner.num_device_blocks), runner.num_device_blocks)
    items = []
    for n, context in enumerate(contexts):
        request = Request.new(str(n), [source.randrange(96) for _ in range(context)], GREEDY, 0.0)
        blocks = [free.pop() for _ in range(-(-context // 8))]
        items.append(PlanItem(request, context - 1, 1, blocks, True))
    return items


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (4, [1, 2, 4]),
        (8, [1, 2, 4, 8]),
        (16, [1, 2, 4, 8, 16]),
        (20, [1, 2, 4, 8, 16, 20]),
        (32, [1, 2, 4, 8, 16, 24, 32]),
    ],
)
def test_batch_sizes(limit: int, sizes: list[int]) -> None:
    assert batch_sizes(limit) == sizes


@pytest.mark.parametrize("contexts", [[1], [128, 1, 9], [8, 16, 17, 3, 64], list(range(1, 19))])
@pytest.mark.slow
def test_a_padded_batch_has_the_logits_of_a_plain_one(runner: TorchRunner, contexts: list[int]) -> None:
    items = decodes(runner, contexts)
    want = runner.execute(StepPlan(0, items)).tokens
    exact = runner.logits(StepPlan(0, items))
    captured = Captured()
    runner.capture_graphs(20, capture=captured)
    assert captured.captures == len(batch_sizes(20))
    items = decodes(runner, contexts)
    assert runner.execute(StepPlan(1, items)).tokens == want
    assert captured.replays == 1
    assert runner.graphs is not None
    with torch.inference_mode():
        got = runner.graphs.logits(items, None)
    torch.testing.assert_close(got, exact, atol=1e-5, rtol=1e-5)


def test_padding_writes_to_the_dummy_block_only(runner: TorchRunner) -> None:
    items = decodes(runner, [5, 12, 30])
    runner.capture_graphs(8, capture=Captured())
    before = runner.pool.clone()
    runner.execute(StepPlan(0, items))
    changed = (runner.pool != before).flatten(1).any(1).nonzero().flatten().tolist()
    written = {item.blocks[item.start // 8] for item in items}
    assert set(changed) <= written | {runner.dummy_block}
    assert written <= set(changed)


def test_a_step_is_not_affected_by_the_step_before_in_the_same_graph(runner: TorchRunner) -> None:
    """A short batch after a long one, at the same addresses, reads nothing of the long one."""
    runner.capture_graphs(8, capture=Captured())
    runner.execute(StepPlan(0, decodes(runner, [100, 120, 90, 77, 128])))
    items = decodes(runner, [2, 9, 3])
    got = runner.execute(StepPlan(1, items)).tokens
    runner.graphs = None
    assert got == runner.execute(StepPlan(2, decodes(runner, [2, 9, 3]))).tokens


def test_tokens_not_read_yet_are_taken_from_the_last_step(runner: TorchRunner) -> None:
    """If the first result is not collected, the second step's input exists only on the device."""
    runner.capture_graphs(8, capture=Captured())

    def two_steps(collect_between: bool) -> list[dict[str, int]]:
        items = decodes(runner, [5, 12, 30])
        first = runner.launch(StepPlan(0, items))
        results = [first().tokens] if collect_between else []
        for item in items:
            item.request.tokens.append(results[0][item.request.id] if collect_between else 0)
        # In another order, and without one of the requests.
        later = [items[2], items[0]]
        following = [PlanItem(i.request, i.start + 1, 1, i.blocks, True) for i in later]
        second = runner.launch(StepPlan(1, following))
        if not collect_between:
            results.append(first().tokens)
        return [*results, second().tokens]

    apart, overlapped = two_steps(True), two_steps(False)
    assert apart == overlapped
    assert len(set(apart[0].values())) > 1


def test_a_step_that_no_graph_fits_runs_without_graphs(runner: TorchRunner) -> None:
    captured = Captured()
    runner.capture_graphs(4, capture=captured)
    prompt = Request.new("p", list(range(20)), GREEDY, 0.0)
    items = decodes(runner, [5, 12])
    runner.execute(StepPlan(0, [*items, PlanItem(prompt, 0, 20, [70, 71, 72], True)]))
    runner.execute(StepPlan(1, decodes(runner, [1, 2, 3, 4, 5])))
    first = PlanItem(prompt, 0, 1, [70], False)
    runner.execute(StepPlan(2, [first]))
    with runner.larger_pool(100):
        runner.pool.zero_()
        runner.execute(StepPlan(3, items))
    assert captured.replays == 0
    runner.execute(StepPlan(4, items))
    assert captured.replays == 1


def test_every_array_starts_at_a_multiple_of_16_bytes() -> None:
    inputs = DecodeInputs(13, 5, DEVICE)
    arrays = [
        inputs.tokens,
        inputs.source,
        inputs.positions,
        inputs.slots,
        inputs.context_lens,
        inputs.tables,
    ]
    start = inputs._buffer.data_ptr()
    assert all((array.data_ptr() - start) % 16 == 0 for array in arrays)
    assert inputs.rows % ALIGNED == 0


def test_inputs_match_a_ragged_batch() -> None:
    runner = runner_of("llama")
    items = decodes(runner, [5, 16, 17])
    inputs = DecodeInputs(16, 16, DEVICE)
    device_tokens = DeviceTokens(torch.tensor([70, 71], device=DEVICE), {items[1].request: (1, 15)})
    inputs.fill(items, 4, 8, runner.dummy_block, device_tokens)
    assert inputs.context_lens[:4].tolist() == [5, 16, 17, 1]
    assert inputs.positions[:4].tolist() == [4, 15, 16, 0]
    assert inputs.source[:4].tolist() == [-1, 1, -1, -1]
    assert inputs.device_tokens[:2].tolist() == [70, 71]
    places = [items[0].blocks[0] * 8 + 4, items[1].blocks[1] * 8 + 7, items[2].blocks[2] * 8]
    assert inputs.slots[:4].tolist() == [*places, runner.dummy_block * 8]
    assert inputs.tables[2, :3].tolist() == items[2].blocks
    assert inputs.tables[3].tolist() == [runner.dummy_block] + [0] * 15
    runner.close()


def test_progress_is_reported(runner: TorchRunner) -> None:
    seen = []

    def track(sizes: list[int]) -> Iterator[int]:
        for size in sizes:
            seen.append(size)
            yield size

    capture: Capture = Captured()
    runner.capture_graphs(8, capture=capture, track=track)  # type: ignore[arg-type]
    assert seen == [8, 4, 2, 1]
