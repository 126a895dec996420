"""Measuring a profile on a fake runner with known costs, and on a small real runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fgengine import profiler
from fgengine.config import EngineConfig
from fgengine.kv.transfer import Transfer
from fgengine.model.catalog import shape_of
from fgengine.physics import Ceilings
from fgengine.plan import StepResult
from fgengine.profile_fit import fit
from fgengine.profile_grid import FULL, GPU, QUICK, Grid

SMALL = Grid((16, 64, 256), (64,), (1, 4, 8), (32, 128, 256), (), repeats=3, seconds_per_point=60.0)


def test_the_fit_finds_the_known_costs(known_runner: Any) -> None:
    points = profiler.measure(known_runner(), FULL)
    cost = fit(points, 1e9)
    for name, value in known_runner.cost.to_dict().items():
        assert getattr(cost, name) == pytest.approx(value, rel=1e-6), name


def test_every_request_of_a_step_has_its_own_blocks_and_kv(known_runner: Any) -> None:
    runner = known_runner()
    profiler.measure(runner, SMALL)
    for plan in runner.plans:
        used = [block for item in plan.items for block in item.blocks]
        assert len(used) == len(set(used))
        for item in plan.items:
            assert item.yields_token
            assert item.start == item.request.num_computed
            assert item.start + item.num_tokens == item.request.num_known <= len(item.blocks) * 16
    touched = max(block for plan in runner.plans for item in plan.items for block in item.blocks)
    assert (runner.measured_in[: touched + 1] != 0).all()  # memory that was never written would seem fast


def test_a_point_is_the_median_of_its_repeats_without_the_warm_up(known_runner: Any) -> None:
    runner = known_runner()
    num_points = len(SMALL.points())
    by_round = [seconds for seconds in (9.0, 0.3, 0.1, 0.2) for _ in range(num_points)]
    runner.execute = lambda plan: StepResult(plan.step, by_round[plan.step])  # type: ignore[method-assign]
    points = profiler.measure(runner, SMALL)
    assert len(points) == num_points
    assert {(point.seconds, point.repeats) for point in points} == {(0.2, 3)}


def test_slow_points_are_repeated_less_often(known_runner: Any) -> None:
    runner = known_runner(speedup=1e-3)
    points = profiler.measure(runner, replace(SMALL, seconds_per_point=1.0))
    assert {point.repeats for point in points} == {1}


def test_the_points_do_not_depend_on_the_engines_own_pool(known_runner: Any) -> None:
    tiny = known_runner(num_device_blocks=1)
    assert profiler.measure(tiny, SMALL) == profiler.measure(known_runner(), SMALL)
    assert (tiny.num_device_blocks, len(tiny.pool)) == (1, 1)


def test_points_longer_than_max_model_len_are_left_out(known_runner: Any) -> None:
    runner = known_runner()
    runner.max_model_len = 64
    points = profiler.measure(runner, SMALL)
    assert max(p.prefill_tokens for p in points) == 64
    runner.max_model_len = 2
    with pytest.raises(ValueError, match="max_model_len of 2 tokens is too short"):
        profiler.measure(runner, SMALL)


def test_progress_is_reported_after_each_repeat(known_runner: Any) -> None:
    reported: list[tuple[int, int]] = []
    points = profiler.measure(known_runner(), SMALL, lambda done, total, _: reported.append((done, total)))
    total = SMALL.repeats * len(points)
    assert reported == [(done, total) for done in range(1, total + 1)]


def test_ceilings_that_are_too_low_are_measured_again(
    slow_machine: list[Ceilings], known_runner: Any
) -> None:
    correct = Ceilings(40e9, 1e12)
    slow_machine[:] = [Ceilings(1e9, 1e10), correct]  # with the first ones, every step would be impossible
    assert profiler.make_profile("smollm2-135m", known_runner(), SMALL).ceilings == correct


def test_impossibly_fast_steps_give_no_profile(slow_machine: list[Ceilings], known_runner: Any) -> None:
    with pytest.raises(ValueError, match="cannot be true, so no profile is made of it: a step of"):
        profiler.make_profile("smollm2-135m", known_runner(speedup=10.0), SMALL)


def test_copies_are_timed_in_both_directions_with_any_host_pool(known_runner: Any) -> None:
    runner = known_runner()
    submitted: list[str] = []
    submit: Callable[[Transfer], None] = runner.copies.submit
    runner.copies.submit = lambda t: (submitted.append(t.direction), submit(t))[1]  # type: ignore[method-assign]
    assert profiler.measure_copies(runner) > 0.0
    assert set(submitted) == {"offload", "upload"}
    assert runner.copied_blocks == profiler.COPY_BLOCKS


@pytest.mark.parametrize("swap_space", [0, 2**20])
@pytest.mark.slow
def test_a_real_runner_can_be_profiled(slow_machine: list[Ceilings], swap_space: int) -> None:
    from fgengine.execution.create import create_runner

    shape = replace(
        shape_of("smollm2-135m"), hidden_size=64, intermediate_size=128, num_layers=2, vocab_size=512
    )
    shape = replace(shape, num_heads=4, num_kv_heads=2, head_dim=16, max_position=512)
    config = EngineConfig(
        use_dummy_weights=True,
        device="cpu",
        dtype="float32",
        num_device_blocks=128,
        swap_space=swap_space / 2**30,
    )
    runner = create_runner(config, shape, None)
    try:
        profile = profiler.make_profile("tiny", runner, SMALL)
    finally:
        runner.close()
    assert len(profile.points) == len(SMALL.points())
    assert profile.cost.prefill_seconds(256) > profile.cost.min_iteration_seconds > 0.0
    profile.require(shape=shape, device=profiler.describe_device(runner), dtype="float32")


def test_points_that_an_engine_would_not_compute_are_left_out(known_runner: Any) -> None:
    """These are batches that no CUDA graph fits, and points that do not fit into the pool, as on a GPU."""
    runner = known_runner()
    runner.max_decodes = 16
    assert max(point.decode_requests for point in profiler.measure(runner, FULL)) == 16
    runner = known_runner(num_device_blocks=400)
    runner.max_blocks = 400
    points = profiler.measure(runner, GPU)
    assert max(point.decode_requests * point.context_tokens for point in points) <= 400 * 16
    assert max(point.decode_requests for point in points) == 128
    assert len(runner.measured_in) == 400


def test_too_little_memory_for_a_pool_is_an_error(slow_machine: list[Ceilings], known_runner: Any) -> None:
    runner = known_runner(num_device_blocks=1)
    runner.max_blocks = 1
    with pytest.raises(ValueError, match=r"a KV pool of 1 blocks is too small .* no memory is free"):
        profiler.measure(runner, QUICK)
