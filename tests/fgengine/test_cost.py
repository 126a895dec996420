"""The cost model with a maximum: every closed form equals the sum over single steps."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fgengine.cost import CostModel, StepShape
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.offload import offload_is_faster
from fgengine.scheduling.steady import seconds_of_steps
from fgengine.scheduling.work_in_progress import WorkInProgress
from fgengine.speed import TYPICAL_CONTEXT, TYPICAL_PROMPT, Speed

costs = st.builds(
    CostModel,
    step=st.sampled_from([1e-4, 0.01]),
    prefill_request=st.sampled_from([0.0, 0.001]),
    prefill_token=st.sampled_from([0.0, 1e-5]),
    prefill_pair=st.sampled_from([0.0, 3e-7]),
    decode_request=st.sampled_from([0.0, 1e-4]),
    decode_context=st.sampled_from([0.0, 1e-6]),
    matmul_step=st.sampled_from([0.0, 0.002, 0.02]),
    matmul_token=st.sampled_from([0.0, 1e-5, 1e-4, 1e-3]),
)
GPU = CostModel(step=0.001, matmul_step=0.02, matmul_token=1e-4, prefill_pair=1e-8, decode_context=6e-7)
"""Steps of up to 200 tokens take equally long."""


def seconds(cost: CostModel, *items: tuple[int, int]) -> float:
    return cost.step_seconds(StepShape.of(items))


def test_a_step_takes_the_longer_of_reading_weights_and_computing() -> None:
    assert seconds(GPU, (0, 150)) == pytest.approx(0.021 + 1e-8 * 150 * 151 / 2)
    assert seconds(GPU, (0, 1000)) == pytest.approx(0.001 + 0.1 + 1e-8 * 1000 * 1001 / 2)
    decodes = [(499, 1)] * 16
    assert seconds(GPU, *decodes) == pytest.approx(0.021 + 16 * 500 * 6e-7)
    # A prompt of 150 tokens hides behind the weights that the decodes read; only its attention is added.
    mixed = seconds(GPU, (0, 150), *decodes)
    assert mixed - seconds(GPU, *decodes) == pytest.approx(1e-8 * 150 * 151 / 2)
    assert seconds(GPU, (0, 300), *decodes) == pytest.approx(
        0.001 + 316 * 1e-4 + 1e-8 * 300 * 301 / 2 + 16 * 500 * 6e-7
    )


def test_without_the_maximum_the_sums_are_exactly_what_they_were() -> None:
    plain = CostModel(0.01, 0.003, 0.001, 1e-6, 0.002, 1e-5)
    shape = StepShape.of([(3, 40), (7, 1), (90, 1)])
    assert plain.is_linear
    assert plain.step_seconds(shape) == (
        0.01 + 0.003 * 1 + 0.001 * 40 + 1e-6 * shape.prefill_pairs + 0.002 * 2 + 1e-5 * shape.decode_context
    )
    assert plain.share_seconds(40, 9, 4) == plain.alone_seconds(40, 9) - 0.01 * 9 * (1.0 - 1.0 / 4)


@given(costs, st.integers(0, 600), st.integers(1, 600))
def test_one_request_alone_is_a_step_of_one_item(cost: CostModel, start: int, tokens: int) -> None:
    assert cost.iteration_seconds(start, tokens) == pytest.approx(seconds(cost, (start, tokens)))


@given(costs, st.integers(2, 600), st.integers(1, 200))
def test_alone_seconds_are_the_sum_of_the_steps(cost: CostModel, prompt: int, output: int) -> None:
    steps = [seconds(cost, (0, prompt)), *(seconds(cost, (prompt + i, 1)) for i in range(output - 1))]
    assert cost.alone_seconds(prompt, output) == pytest.approx(sum(steps))


def own_part(cost: CostModel, item: tuple[int, int], batch: int) -> float:
    """The item's part of a step in which the rest of a full batch decodes."""
    others = [(9, 1)] * (batch - 1)
    full = seconds(cost, *[(9, 1)] * batch) / batch
    return seconds(cost, item, *others) - (batch - 1) * full


@given(costs, st.integers(2, 600), st.integers(1, 60), st.integers(1, 32))
def test_share_seconds_are_the_request_s_parts_of_full_batches(
    cost: CostModel, prompt: int, output: int, batch: int
) -> None:
    parts = [own_part(cost, (0, prompt), batch)]
    parts += [own_part(cost, (prompt + i, 1), batch) for i in range(output - 1)]
    assert cost.share_seconds(prompt, output, batch) == pytest.approx(sum(parts), rel=1e-6)


@given(costs, st.integers(0, 300), st.integers(2, 300), st.integers(1, 60), st.integers(1, 32))
def test_the_remaining_share_is_the_rest_of_the_prefill_and_the_parts_of_the_decodes(
    cost: CostModel, start: int, pending: int, output: int, batch: int
) -> None:
    others = [(9, 1)] * (batch - 1)
    with_others = seconds(cost, *others) if others else cost.step + cost.matmul_seconds(0)
    added = seconds(cost, (start, pending), *others) - with_others
    decodes = sum(own_part(cost, (start + pending + i, 1), batch) for i in range(output))
    # The middle of the contexts is half a token above their mean.
    half_tokens = cost.decode_context * output / 2
    remaining = cost.remaining_share_seconds(start, pending, output, batch)
    assert remaining == pytest.approx(added + decodes - half_tokens, rel=1e-6, abs=1e-9)


@given(costs, st.lists(st.integers(1, 400), min_size=1, max_size=40), st.integers(1, 50))
def test_many_decode_steps_take_as_long_as_one_after_the_other(
    cost: CostModel, lengths: list[int], steps: int
) -> None:
    running = [Request.new(str(i), [0] * n, SamplingParams(), 0.0) for i, n in enumerate(lengths)]
    durations = [seconds(cost, *[(n - 1 + i, 1) for n in lengths]) for i in range(steps)]
    middle = sum(durations[:-1]) + durations[0] / 2
    assert seconds_of_steps(cost, running, steps) == pytest.approx(middle)
    assert seconds_of_steps(cost, running, math.inf) == math.inf


@given(costs, st.data())
def test_work_in_progress_is_left_by_nothing_that_has_ended(cost: CostModel, data: st.DataObject) -> None:
    """However a prompt is cut into pieces, all its work ends with the request."""
    assume(not cost.is_linear)
    batch = data.draw(st.integers(1, 16))
    work = WorkInProgress(cost, batch)
    requests = [Request.new(str(i), [0] * 100, SamplingParams(max_tokens=9), 0.0) for i in range(2 * batch)]
    total = 0.0
    for request in requests:
        work.started(request)
        for piece in data.draw(st.sampled_from([[100], [60, 40], [20] * 5])):
            item = PlanItem(request, request.num_computed, piece, (), True)
            work.computed(StepPlan(0, [item]), 1)
            total += own_part(cost, (request.num_computed, piece), batch)
            request.num_computed += piece
        decode = PlanItem(request, 100, 1, (), True)
        work.computed(StepPlan(0, [decode]), 8)
        total += sum(own_part(cost, (100 + i, 1), batch) for i in range(8))
        request.num_computed += 8
        request.tokens.extend([0] * 9)
    assert work._done == pytest.approx(total) == pytest.approx(work._open)
    for request in requests:
        request.finish("length", 1.0)
        work.ended(request)
    assert work._open == pytest.approx(0.0, abs=1e-9)


def test_steps_until_too_much_are_never_more_than_the_work_allows() -> None:
    work = WorkInProgress(GPU, 4)
    request = Request.new("a", [0] * 100, SamplingParams(max_tokens=500), 0.0)
    work.started(request)
    items = [PlanItem(request, 100, 1, (), True)]
    steps = work.steps_until_too_much(items)
    work.computed(StepPlan(0, items), steps)
    assert steps > 1
    assert work._open <= work._floor()


def test_recomputing_a_short_prompt_is_free_below_the_knee() -> None:
    """The decodes read the weights anyway, so copying is faster only if recomputation is not hidden."""
    slow_link = CostModel(step=0.001, matmul_step=0.02, matmul_token=1e-4, copy_bytes_per_second=1e9)
    kv_bytes = 800_000
    assert not offload_is_faster(slow_link, 150 * kv_bytes, 150, 16)
    fast_link = CostModel(step=0.001, matmul_step=0.02, matmul_token=1e-4, copy_bytes_per_second=25e9)
    assert offload_is_faster(fast_link, 1000 * kv_bytes, 1000, 16)
    assert not offload_is_faster(fast_link, 150 * kv_bytes, 150, 16)


def test_the_speed_for_queue_limits_uses_the_maximum() -> None:
    speed = Speed.of(GPU, 16)
    assert speed.prompt_tokens_per_second == pytest.approx(TYPICAL_PROMPT / seconds(GPU, (0, TYPICAL_PROMPT)))
    decode = seconds(GPU, *[(TYPICAL_CONTEXT - 1, 1)] * 16)
    assert speed.output_tokens_per_second == pytest.approx(16 / decode)


def test_slowed_slows_the_maximum_too() -> None:
    slow = GPU.slowed(1.5)
    for tokens in (50, 2000):
        assert slow.prefill_seconds(tokens) == pytest.approx(1.5 * GPU.prefill_seconds(tokens))


def test_a_dict_without_the_maximum_is_read_and_one_with_it_is_read_back() -> None:
    assert CostModel.from_dict({"step": 0.1, "prefill_token": 1e-4}).is_linear
    assert CostModel.from_dict(GPU.to_dict()) == GPU
    with pytest.raises(ValueError, match="matmul_token must be a number >= 0"):
        CostModel(step=0.1, matmul_token=-1.0)
