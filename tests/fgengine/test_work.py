"""The prediction from sums equals the sum of the predictions of all steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgengine.cost import CostModel, StepShape
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request, SamplingParams
from fgengine.work import Work

COST = CostModel(
    step=0.01,
    prefill_request=0.003,
    prefill_token=0.001,
    prefill_pair=1e-6,
    decode_request=0.002,
    decode_context=1e-5,
)
items = st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), min_size=1, max_size=8)


@given(st.lists(items, min_size=1, max_size=6))
def test_predicted_seconds_equal_the_sum_over_the_steps(steps: list[list[tuple[int, int]]]) -> None:
    request = Request.new("a", [0], SamplingParams(), 0.0)
    work = Work()
    for number, step in enumerate(steps):
        plan = StepPlan(number, [PlanItem(request, start, n, (), True) for start, n in step])
        work.add(plan, model_seconds=0.5, step_seconds=0.75)
    expected = sum(COST.step_seconds(StepShape.of(step)) for step in steps)
    assert work.predicted_seconds(COST) == pytest.approx(expected)
    assert work.seconds == pytest.approx(0.75 * len(steps))
    assert work.engine_seconds == pytest.approx(0.25 * len(steps))


def test_sums_do_not_predict_a_cost_model_with_a_maximum() -> None:
    assert Work(work_steps=3).predicted_seconds(replace(COST, matmul_step=0.01, matmul_token=1e-4)) is None


def test_slowed_makes_steps_slower_but_not_copies() -> None:
    slow = COST.slowed(1.5)
    shape = StepShape.of([(3, 40), (7, 1)])
    assert slow.step_seconds(shape) == pytest.approx(1.5 * COST.step_seconds(shape))
    assert slow.copy_bytes_per_second == COST.copy_bytes_per_second
