"""The fit of the cost model for a GPU, on a synthetic machine of which everything is known."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from fgengine.cost import CostModel, StepShape
from fgengine.model.catalog import shape_of
from fgengine.model.shape import ModelShape
from fgengine.physics import Ceilings, floor_of, layer_parameters
from fgengine.profile_fit import fit
from fgengine.profile_grid import GPU, QUICK, QUICK_GPU, TimedStep, grid_for

Items = list[tuple[int, int]]
Machine = Callable[[Items], float]
H100 = Ceilings(bytes_per_second=2.75e12, flops_per_second=640e12)
OVERHEAD = 0.0015


def layer_by_layer(shape: ModelShape) -> Machine:
    """Return a machine whose linear layers take the longer of bytes and operations, each."""

    def step(items: Items) -> float:
        new = sum(n for _, n in items)
        context = sum(start + 1 for start, n in items if n == 1)
        pairs = sum(n * start + n * (n + 1) // 2 for start, n in items if n > 1)
        weights = layer_parameters(shape)
        linear = max(2 * weights / H100.bytes_per_second, 2 * weights * new / H100.flops_per_second)
        attention = context * shape.kv_bytes_per_token(2) / H100.bytes_per_second
        attention += 4 * shape.num_layers * shape.num_heads * shape.head_dim * pairs / H100.flops_per_second
        return OVERHEAD + linear + attention

    return step


def all_at_once(shape: ModelShape) -> Machine:
    """Return a machine that hides all bytes of a step behind all its operations, or the reverse."""
    return lambda items: OVERHEAD + floor_of(items, shape, 2, H100).seconds


def points(grid_points: list[TimedStep], machine: Machine, noise: float = 0.0) -> list[TimedStep]:
    source = random.Random(1)
    return [
        replace(point, seconds=machine(point.items) * (1.0 + source.gauss(0.0, noise)), repeats=1)
        for point in grid_points
        if point.longest <= 2048
    ]


def error(cost: CostModel, machine: Machine, items: Items) -> float:
    return cost.step_seconds(StepShape.of(items)) / machine(items) - 1.0


CHECKED: list[Items] = [
    *([(0, n)] for n in (50, 200, 300, 500, 1000, 1800)),
    *([(context - 1, 1)] * batch for batch, context in ((1, 60), (16, 500), (64, 500))),
    [(0, 300), *[(400, 1)] * 15],
    [(500, 700)],
]


@pytest.mark.parametrize("model", ["opt-13b", "llama-3-8b", "smollm2-135m"])
@pytest.mark.parametrize("grid", [GPU, QUICK_GPU], ids=["thorough", "quick"])
def test_a_machine_of_this_form_is_found_exactly(model: str, grid: object) -> None:
    machine = layer_by_layer(shape_of(model))
    cost = fit(points(grid.points(), machine), 1e9, with_maximum=True)  # type: ignore[attr-defined]
    assert all(error(cost, machine, items) == pytest.approx(0.0, abs=1e-3) for items in CHECKED)
    assert fit(points(grid.points(), machine), 1e9).is_linear  # type: ignore[attr-defined]


@pytest.mark.parametrize("model", ["opt-13b", "llama-3-8b"])
@pytest.mark.parametrize("grid", [GPU, QUICK_GPU], ids=["thorough", "quick"])
def test_noise_of_the_measurement_is_not_amplified(model: str, grid: object) -> None:
    machine = layer_by_layer(shape_of(model))
    cost = fit(points(grid.points(), machine, 0.02), 1e9, with_maximum=True)  # type: ignore[attr-defined]
    assert all(abs(error(cost, machine, items)) < 0.06 for items in CHECKED)


@pytest.mark.parametrize("model", ["opt-13b", "llama-3-8b"])
@pytest.mark.parametrize("machine_of", [layer_by_layer, all_at_once])
def test_a_long_prompt_is_within_10_percent_where_a_sum_is_a_third_too_low(
    model: str, machine_of: Callable[[ModelShape], Machine]
) -> None:
    machine, prompt = machine_of(shape_of(model)), [(0, 1000)]
    as_sum = fit(points(QUICK.points(), machine), 1e9)
    assert error(as_sum, machine, prompt) < -0.35
    with_maximum = fit(points(QUICK_GPU.points(), machine), 1e9, with_maximum=True)
    assert abs(error(with_maximum, machine, prompt)) < 0.10


def test_points_that_contain_no_knee_are_fitted_as_well_as_by_a_sum() -> None:
    known = CostModel(step=0.02, prefill_token=3e-4, decode_request=5e-4, decode_context=4e-6)

    def machine(items: Items) -> float:
        return known.step_seconds(StepShape.of(items))

    cost = fit(points(QUICK_GPU.points(), machine), 1e9, with_maximum=True)
    assert all(error(cost, machine, items) == pytest.approx(0.0, abs=0.01) for items in CHECKED)


def test_a_gpu_s_grids_have_long_prompts_and_mixed_steps() -> None:
    assert grid_for("cuda", quick=True) is QUICK_GPU
    assert grid_for("cuda", quick=False) is GPU
    assert grid_for("cpu", quick=True) is QUICK
    for grid in (QUICK_GPU, GPU):
        assert max(grid.prefill) == 2048  # the default of max_tokens_per_batch
        assert any(point.prefill_tokens and point.decode_requests for point in grid.points())
