"""Memory of steps, measured on the largest possible steps of a real model on a fake GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import torch

from fgengine.config import EngineConfig
from fgengine.execution.memory import measure
from fgengine.execution.runner import TorchRunner
from fgengine.model.loader import load
from fgengine.model.shape import ModelShape
from fgengine.plan import StepPlan, StepResult

MIB = 1024**2
SHAPE = ModelShape("llama", 96, 64, 96, 2, 4, 2, 16, 128, tied_embeddings=True)
OTHERS, CONTEXT, MODULES = 400 * MIB, 50 * MIB, 10 * MIB
TOTAL, WEIGHTS, WORKSPACE = 2000 * MIB, 100 * MIB, 32 * MIB
A_TOKEN, A_ROW, CACHED = 100_000, 300_000, 7 * MIB


class FakeGpu:
    """A memory probe. A runner's steps use its memory: per token, per row, and once permanently."""

    def __init__(self, runner: TorchRunner, total: int = TOTAL) -> None:
        self.total, self.runner = total, runner
        self.staying = WEIGHTS + runner.pool.nbytes
        self.cached = 0
        self.highest = 0
        self.outside = OTHERS + CONTEXT
        self.plans: list[StepPlan] = []
        self._execute, self._logits = runner.execute, runner.logits

    def execute(self, plan: StepPlan) -> StepResult:
        if not self.plans:
            self.staying += WORKSPACE
            self.outside += MODULES
        self.plans.append(plan)
        self._take(A_TOKEN * plan.num_tokens + A_ROW * len(plan.items))
        return self._execute(plan)

    def logits(self, plan: StepPlan) -> torch.Tensor:
        self._take(A_TOKEN * plan.num_tokens)
        return self._logits(plan)

    def _take(self, taken: int) -> None:
        self.highest = max(self.highest, self.reserved() + taken)
        if self.highest > self.total - self.outside:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.cached += CACHED

    def settle(self) -> None:
        self.cached = 0

    def reserved(self) -> int:
        return self.staying + self.cached

    def reset_peak(self) -> None:
        self.highest = self.reserved()

    def peak(self) -> int:
        return self.highest

    def free_and_total(self) -> tuple[int, int]:
        return self.total - self.outside - self.reserved(), self.total


@pytest.fixture
def trial() -> Iterator[TorchRunner]:
    model = load(SHAPE, None, torch.device("cpu"), torch.float32)
    runner = TorchRunner(model, block_size=16, num_device_blocks=1, num_host_blocks=0, max_model_len=100)
    with closing(runner):
        yield runner


@pytest.fixture
def gpu(trial: TorchRunner, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu(trial)
    monkeypatch.setattr(trial, "execute", gpu.execute)
    monkeypatch.setattr(trial, "logits", gpu.logits)
    return gpu


def config(tokens: int, requests: int) -> EngineConfig:
    return EngineConfig(max_tokens_per_batch=tokens, max_batch_size=requests)


@pytest.mark.parametrize("graphs", [True, False])
def test_everything_is_counted_once(trial: TorchRunner, gpu: FakeGpu, graphs: bool) -> None:
    measured = measure(trial, config(250, 8), gpu, graphs=graphs)
    assert measured.total == TOTAL
    assert measured.outside == OTHERS + CONTEXT + MODULES
    assert measured.weights == WEIGHTS + WORKSPACE
    assert measured.activations == 250 * A_TOKEN + 8 * A_ROW
    assert measured.graphs == (8 * A_TOKEN if graphs else 0)  # graphs do not sample


@pytest.mark.parametrize(
    ("tokens", "requests", "lengths"),
    [
        (250, 8, [100, 100, 45, 1, 1, 1, 1, 1]),
        (2000, 3, [100, 100, 100]),  # no request is longer
        (64, 4, [61, 1, 1, 1]),
        (3, 8, [1, 1, 1]),
    ],
)
def test_the_largest_step_and_a_full_decode_run_to_the_longest_context(
    trial: TorchRunner, gpu: FakeGpu, tokens: int, requests: int, lengths: list[int]
) -> None:
    measure(trial, config(tokens, requests), gpu, graphs=True)
    kinds = [[item.num_tokens for item in plan.items] for plan in gpu.plans]
    largest = [lengths, [1] * len(lengths), [min(65, tokens)]]
    assert kinds == [*largest, [1], *largest]
    scored = [gpu.plans[2], gpu.plans[6]]
    for plan in gpu.plans:
        for item in plan.items:
            assert item.yields_token
            assert item.start + item.num_tokens == 100
            assert set(item.blocks) == {0}
            assert (item.request.params.prompt_logprobs == 20) == (plan in scored)
    for item in (item for plan in gpu.plans if plan not in scored for item in plan.items):
        assert item.request.params.top_logprobs == 20
        assert item.request.params.has_penalties
        assert not item.request.params.greedy
        assert item.request.params.top_p < 1.0


def test_a_step_that_does_not_fit_is_explained(trial: TorchRunner, gpu: FakeGpu) -> None:
    gpu.total = 900 * MIB
    gpu.outside = 690 * MIB
    with pytest.raises(
        ValueError, match=r"no memory for a step of 1000 tokens or 16 requests: of the GPU's 900"
    ) as e:
        measure(trial, config(1000, 16), gpu, graphs=True)
    assert "other processes and CUDA itself 700 MiB are taken" in str(e.value)
    assert str(e.value).endswith("or max_batch_size, or end the other processes on this GPU")


def test_another_error_is_not_reported_as_a_lack_of_memory(
    trial: TorchRunner, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(plan: StepPlan) -> StepResult:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(trial, "execute", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure(trial, config(64, 4), gpu, graphs=True)


def test_memory_of_the_warm_up_is_not_counted_as_a_steps(trial: TorchRunner, gpu: FakeGpu) -> None:
    """All warm-up steps run before the first measured one."""
    order: list[str] = []
    watched: list[tuple[object, str]] = [(gpu, "settle"), (gpu, "reset_peak"), (trial, "execute")]
    watched.append((trial, "logits"))

    def watch(holder: object, name: str) -> None:
        original: Callable[..., object] = getattr(holder, name)

        def recorded(*args: object) -> object:
            order.append(name)
            return original(*args)

        setattr(holder, name, recorded)

    for holder, name in watched:
        watch(holder, name)
    measure(trial, config(64, 4), gpu, graphs=True)
    one = ["settle", "reset_peak", "execute"]
    of_graphs = ["settle", "reset_peak", "logits"]
    assert order == ["execute"] * 4 + [*one, *one, *one, *of_graphs, "settle"]
