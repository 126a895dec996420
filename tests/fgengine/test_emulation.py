"""An engine on a device that is not here: real time, filler tokens, steps as long as the profile predicts."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from fgengine import emulation
from fgengine.analytic import profile_of
from fgengine.clock import RealTimeClock
from fgengine.config import EngineConfig
from fgengine.cost import CostModel, StepShape
from fgengine.emulation import EmulatedRunner, emulated_parts, filler_token
from fgengine.engine import Engine
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request, SamplingParams

SETTINGS: dict[str, Any] = {"model": "opt-13b", "device_spec": "a100-40gb", "policy": "fcfs"}
COST = CostModel(step=0.5)


class Jumping(RealTimeClock):
    """A clock that jumps to the moment for which it should wait."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def advance_to(self, moment: float) -> None:
        self.time = max(self.time, moment)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Jumping:
    made = Jumping()
    monkeypatch.setattr(emulation, "RealTimeClock", lambda: made)
    return made


def plan(**params: Any) -> StepPlan:
    request = Request.new("a", [1, 2, 3], SamplingParams(max_tokens=9, **params), 0.0)
    return StepPlan(7, [PlanItem(request, 0, 3, (0,), True)])


def test_a_step_begins_at_the_end_of_the_one_before() -> None:
    clock = Jumping()
    runner = EmulatedRunner(COST, 1000, clock)
    first = runner.launch(plan())
    clock.time += 0.2
    second = runner.launch(plan())
    assert (first().seconds, clock.time) == (0.5, 100.5)
    clock.time += 0.1
    assert (second().step, clock.time) == (7, 101.0)
    clock.time = 200.0
    runner.launch(plan())()
    assert clock.time == 200.5


def test_fillers_are_different_tokens_of_the_vocabulary() -> None:
    assert [filler_token(at, 50_000) for at in (0, 1, 999, 1000)] == [300, 301, 1299, 300]
    assert filler_token(0, 512) == 300
    for size in (1, 2, 299, 301, 600):
        assert all(0 <= filler_token(at, size) < size for at in range(1500))
    result = EmulatedRunner(COST, 1000, Jumping()).launch(plan(logprobs=True))()
    assert (result.tokens, result.logprobs) == ({"a": 300}, {"a": 0.0})


def test_a_real_time_clock_sleeps_until_the_moment() -> None:
    clock = RealTimeClock()
    begin = time.monotonic()
    clock.advance_to(begin + 0.03)
    assert 0.03 <= time.monotonic() - begin < 0.5
    clock.advance_to(begin)


def test_a_request_takes_as_long_as_the_profile_predicts(clock: Jumping) -> None:
    engine = Engine.from_config(EngineConfig(**SETTINGS))
    (request,) = engine.generate([[5] * 400], SamplingParams(max_tokens=30))
    predicted = profile_of(EngineConfig(**SETTINGS)).cost.alone_seconds(400, 30)
    assert clock.time - 100.0 == pytest.approx(predicted)
    assert request.finish_reason == "length"
    assert request.tokens[400:] == list(range(300, 330))
    stats = engine.stats()
    assert stats["analytic_device"] == "a100-40gb"
    assert stats["model_seconds"] == pytest.approx(predicted)


def test_kv_is_offloaded_over_the_link_of_the_device(clock: Jumping) -> None:
    settings = {**SETTINGS, "policy": "sj-mlfq", "num_device_blocks": 60, "offloading": "proactive"}
    engine = Engine.from_config(EngineConfig(**settings))
    requests = engine.generate([[5] * 150] * 12, SamplingParams(max_tokens=60))
    assert {len(request.tokens) for request in requests} == {210}
    assert all(request.tokens[150:] == list(range(300, 360)) for request in requests)
    stats = engine.stats()
    assert stats["uploaded_blocks"] > 0
    assert stats["free_device_blocks"] == 60
    parts = emulated_parts(EngineConfig(**settings), lambda line: None)
    assert parts.copies.seconds_per_block == pytest.approx(16 * 2 * 40 * 5120 * 2 / (0.8 * 32e9))


def test_a_batch_of_decodes_waits_for_the_time_of_its_shape(clock: Jumping) -> None:
    engine = Engine.from_config(EngineConfig(**SETTINGS, step_overhead_ms=8.5))
    cost = profile_of(EngineConfig(**SETTINGS, step_overhead_ms=8.5)).cost
    engine.generate([[5] * 100] * 16, SamplingParams(max_tokens=2))
    expected = cost.step_seconds(StepShape.of([(0, 100)] * 16)) + cost.step_seconds(
        StepShape.of([(100, 1)] * 16)
    )
    assert clock.time - 100.0 == pytest.approx(expected)


def test_settings_that_do_not_fit_the_device_are_refused() -> None:
    for settings, message in (
        ({"device": "cpu"}, "leave out --device cpu"),
        ({"device_spec": "rtx4090"}, "opt-13b does not fit on rtx4090"),
    ):
        with pytest.raises(ValueError, match=message):
            Engine.from_config(EngineConfig(**{**SETTINGS, **settings}))


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # an import of it fails
from fgengine import Engine, EngineConfig, SamplingParams
engine = Engine.from_config(EngineConfig(model="opt-125m", device_spec="h200"))
(request,) = engine.generate([[1, 2, 3]], SamplingParams(max_tokens=3))
print(request.tokens, engine.stats()["analytic_device"])
"""


def test_torch_is_not_needed() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[1, 2, 3, 300, 301, 302] h200\n", "")
