"""The speed for the default queue limit: from a cost model, an available profile, or a few timed steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fgengine import profiler, quick_speed
from fgengine.config import EngineConfig
from fgengine.cost import CostModel, StepShape
from fgengine.engine import Engine
from fgengine.model.catalog import shape_of
from fgengine.physics import Ceilings
from fgengine.plan import StepPlan, StepResult
from fgengine.profile import Profile, shape_key
from fgengine.profile_cache import default_path
from fgengine.profile_grid import TimedStep
from fgengine.speed import Speed

COST = CostModel(step=0.02, prefill_token=3e-4, decode_request=5e-4, decode_context=4e-6)


class KnownRunner:
    """A fake runner whose steps take the seconds that ``COST`` predicts."""

    def __init__(self, device: str = "cpu", num_device_blocks: int = 400, max_model_len: int = 2048) -> None:
        self.shape = shape_of("smollm2-135m")
        self.device, self.dtype = torch.device(device), torch.float32
        self.device_name, self.dtype_name = "abacus", "float32"
        self.block_size = 16
        self.num_device_blocks, self.num_host_blocks = num_device_blocks, 8
        self.max_model_len, self.max_decodes, self.num_threads = max_model_len, 128, 2
        self.max_blocks = num_device_blocks
        self.pool: Any = np.zeros((num_device_blocks, 1))
        self.steps = 0

    def execute(self, plan: StepPlan) -> StepResult:
        self.steps += 1
        return StepResult(plan.step, COST.step_seconds(StepShape.of_plan(plan)))

    @contextmanager
    def larger_pool(self, num_blocks: int) -> Iterator[None]:
        own, self.pool = self.pool, np.zeros((max(num_blocks, len(self.pool)), 1))
        yield
        self.pool = own


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path))
    return tmp_path


def speed(runner: KnownRunner, cost: CostModel | None = None, **settings: Any) -> Speed | None:
    config = EngineConfig(model="smollm2-135m", policy="fcfs", **settings)
    return quick_speed.speed_of(config, runner, cost)  # type: ignore[arg-type]


def test_no_step_is_timed_if_the_engine_has_a_cost_model() -> None:
    runner = KnownRunner()
    assert speed(runner, COST) == Speed.of(COST, 16)
    assert runner.steps == 0


def test_a_few_steps_are_timed_without_a_cost_model() -> None:
    runner = KnownRunner()
    found = speed(runner)
    assert found is not None
    expected = Speed.of(COST, 16)
    assert found.prompt_tokens_per_second == pytest.approx(expected.prompt_tokens_per_second)
    assert found.output_tokens_per_second == pytest.approx(expected.output_tokens_per_second)
    assert runner.steps <= 10


def test_no_step_is_timed_if_there_is_a_cached_profile(cache: Path) -> None:
    runner = KnownRunner()
    typed: profiler.ProfiledRunner = runner  # type: ignore[assignment]
    cost = CostModel(step=1.0, decode_request=0.1)
    profile = Profile(
        "smollm2-135m",
        shape_key(runner.shape),
        profiler.describe_device(typed),
        "float32",
        cost,
        Ceilings(40e9, 1e12),
        (TimedStep(0, 1, 16, seconds=1.1),),
        {},
        "2026-11-25",
    )
    profile.save(default_path("smollm2-135m", typed))
    assert speed(runner) == Speed.of(cost, 16)
    assert runner.steps == 0
    default_path("smollm2-135m", typed).write_text("{}")
    assert speed(runner) is not None
    assert runner.steps > 0


@pytest.mark.parametrize(
    ("runner", "measurable"),
    [
        (KnownRunner(max_model_len=64), True),
        (KnownRunner(max_model_len=1), False),
        (KnownRunner("cuda", num_device_blocks=20), True),
        (KnownRunner("cuda", num_device_blocks=4), False),
    ],
)
def test_small_models_and_pools_do_not_prevent_a_start(runner: KnownRunner, measurable: bool) -> None:
    assert (speed(runner) is not None) == measurable


@pytest.mark.parametrize(
    ("settings", "times"), [({}, True), ({"max_queue": 7, "max_queue_tokens": 8}, False)]
)
def test_an_engine_reports_its_queue_limit_at_the_start(
    tiny_model: Path, settings: dict[str, int], times: bool
) -> None:
    lines: list[str] = []
    report: Callable[[str], None] = lines.append
    config = EngineConfig(
        model=str(tiny_model),
        use_dummy_weights=True,
        device="cpu",
        policy="fcfs",
        num_device_blocks=64,
        **settings,
    )
    engine = Engine.from_config(config, report)
    try:
        stats = engine.stats()
    finally:
        engine.close()
    assert any(line.startswith("timing a few steps") for line in lines) == times
    (line,) = [line for line in lines if line.startswith("queue: at most ")]
    assert f"at most {stats['max_queue']:,} waiting requests" in line
    assert f"{stats['max_queue_tokens']:,} prompt tokens" in line
    if times:
        assert stats["max_queue"] >= 96
    else:
        assert (stats["max_queue"], stats["max_queue_tokens"], stats["queue_timeout"]) == (7, 8, None)
