"""Tests of arrival processes: distributions, seeds, labels and fingerprints."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from fgbench.workload.arrivals import (
    POISSON,
    PROCESSES,
    Arrivals,
    Burst,
    ClosedLoop,
    Gamma,
    Ramp,
    Replay,
    Stages,
    Uniform,
)
from fgbench.workload.build import build_workload
from fgbench.workload.datasets import Lengths

RECORDED = Replay("recorded", (0.0, 1.0, 1.5, 4.0, 4.0, 8.0))
OPEN: list[Arrivals] = [
    POISSON,
    Gamma(2.0),
    Gamma(0.5),
    Uniform(),
    Burst(8),
    Ramp(5.0),
    Stages(((1.0, 60.0), (4.0, 60.0))),
    RECORDED,
]
SAMPLE = 20_001
TABLE = Lengths("table", tuple((i, 2 * i) for i in range(4, 104)))


def gaps(arrivals: Arrivals, rate: float = 4.0, count: int = SAMPLE, seed: int = 3) -> np.ndarray:
    return np.diff(arrivals.times(np.random.default_rng(seed), count, rate))


def test_poisson_gaps_are_exponential() -> None:
    assert stats.kstest(gaps(POISSON), "expon", args=(0, 0.25)).pvalue > 0.01
    assert (
        stats.kstest(gaps(Gamma(1.5)), "expon", args=(0, 0.25)).pvalue < 1e-6
    )  # the test rejects another distribution


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0, 4.0])
def test_gamma_gaps_have_the_requested_mean_and_cv(cv: float) -> None:
    found = gaps(Gamma(cv))
    assert found.mean() == pytest.approx(0.25, rel=0.05 * max(1.0, cv))
    assert found.std() / found.mean() == pytest.approx(cv, rel=0.05)
    rounded = found[found > 1e-3]  # times are rounded to microseconds
    shape = 1 / cv**2
    gamma = stats.gamma(shape, scale=0.25 / shape)
    above = stats.kstest(rounded, lambda x: (gamma.cdf(x) - gamma.cdf(1e-3)) / gamma.sf(1e-3))
    assert above.pvalue > 0.01


def test_uniform_gaps_are_equal() -> None:
    assert gaps(Uniform(), rate=8.0, count=50) == pytest.approx(np.full(49, 0.125))


def test_bursts_are_a_poisson_process_with_the_requested_rate() -> None:
    times = Burst(8).times(np.random.default_rng(3), 8 * 5000 + 3, 4.0)
    moments, sizes = np.unique(times, return_counts=True)
    assert set(sizes[:-1]) == {8}
    assert sizes[-1] == 3  # the remaining requests
    assert stats.kstest(np.diff(moments), "expon", args=(0, 2.0)).pvalue > 0.01
    assert len(times) / times[-1] == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize(("rate", "rate_to"), [(1.0, 9.0), (9.0, 1.0), (4.0, 4.0)])
def test_the_rate_of_a_ramp_changes_linearly(rate: float, rate_to: float) -> None:
    count = SAMPLE
    times = np.array(Ramp(rate_to).times(np.random.default_rng(3), count, rate))
    end = 2 * (count - 1) / (rate + rate_to)
    assert times[-1] == pytest.approx(end, rel=0.03)
    assert Ramp(rate_to).mean_rate(rate) == pytest.approx(5.0 if rate != rate_to else 4.0)

    # The integral of the rate up to each arrival turns the ramp back into a Poisson process of rate 1.
    inside = times[times < end]
    integral = rate * inside + (rate_to - rate) / end * inside**2 / 2
    assert stats.kstest(np.diff(integral), "expon").pvalue > 0.01
    first, last = (times < end / 10).sum(), ((times > end * 0.9) & (times < end)).sum()
    assert first == pytest.approx(end / 10 * (rate + (rate_to - rate) * 0.05), rel=0.1)
    assert last == pytest.approx(end / 10 * (rate + (rate_to - rate) * 0.95), rel=0.1)


@pytest.mark.parametrize("arrivals", [POISSON, Gamma(2.0), Uniform(), RECORDED], ids=lambda a: a.label)
@pytest.mark.parametrize("seed", range(5))
def test_the_rate_is_met_exactly(arrivals: Arrivals, seed: int) -> None:
    """Unscaled Poisson gaps missed it by up to 70% with 20 requests."""
    count = 6
    times = arrivals.part(count, seed).times(np.random.default_rng(seed), count, 2.0)
    assert times[-1] == pytest.approx((count - 1) / 2.0, abs=2e-6)
    ramp = Ramp(3.0).times(np.random.default_rng(seed), count, 1.0)
    assert ramp[-1] == pytest.approx(2 * (count - 1) / 4.0, abs=2e-6)


def test_a_trace_is_replayed_at_its_own_times_or_scaled() -> None:
    rng = np.random.default_rng(0)
    assert RECORDED.own_rate == pytest.approx(5 / 8)
    assert RECORDED.times(rng, 6, RECORDED.own_rate) == pytest.approx(RECORDED.recorded)
    with pytest.raises(ValueError, match="has 6 requests, fewer than 7: lower --num-prompts"):
        RECORDED.times(rng, 7, 1.0)
    part = RECORDED.part(4, 0)
    assert part.own_rate == pytest.approx(3 / 4)  # of the part, not of the complete trace
    assert part.times(rng, 4, part.own_rate) == pytest.approx((0.0, 1.0, 1.5, 4.0))
    at_once = Replay("once", (0.0, 0.0))
    assert at_once.times(rng, 2, at_once.own_rate) == (0.0, 0.0)


def test_each_seed_replays_another_window_of_a_trace() -> None:
    trace = Replay("long", tuple(float(i * i) for i in range(500)))
    table = Lengths("long", tuple((i + 10, i + 5) for i in range(500)), in_order=True)
    starts = set()
    for seed in range(5):
        workload = build_workload(table, rate=2.0, num_prompts=100, seed=seed, arrivals=trace)
        first = workload.arrivals.first
        assert (first == 0) is (seed == 0)
        assert [r.prompt_tokens for r in workload.requests] == list(range(first + 10, first + 110))
        gaps = np.diff([r.scheduled for r in workload.requests])
        recorded = np.diff([float(i * i) for i in range(first, first + 100)])
        assert gaps / gaps.sum() == pytest.approx(recorded / recorded.sum(), rel=1e-3)
        assert workload.arrivals.label == "trace long requests=100 of=500"
        starts.add(first)
    assert len(starts) == 5
    whole = [build_workload(table, rate=2.0, num_prompts=500, seed=s, arrivals=trace) for s in (0, 1)]
    assert [r.scheduled for r in whole[0].requests] == [r.scheduled for r in whole[1].requests]


def test_a_closed_loop_has_an_order_and_no_times() -> None:
    closed = ClosedLoop(4)
    assert closed.concurrency == 4
    assert closed.mean_rate(math.inf) is None
    assert closed.times(np.random.default_rng(0), 3, math.inf) == (0.0, 0.0, 0.0)
    assert all(arrivals.concurrency is None for arrivals in OPEN)


@pytest.mark.parametrize("arrivals", OPEN, ids=lambda arrivals: arrivals.label)
def test_times_start_at_zero_are_ascending_and_depend_on_the_seed(arrivals: Arrivals) -> None:
    count = 6
    one, again, other = (arrivals.times(np.random.default_rng(s), count, 2.0) for s in (1, 1, 2))
    assert one == again
    assert one[0] == 0.0
    assert len(one) == count
    assert all(a <= b for a, b in itertools.pairwise(one))
    is_random = not isinstance(arrivals, (Uniform, Replay, Burst))  # six requests are one burst
    assert (one != other) is is_random
    assert arrivals.times(np.random.default_rng(1), 1, 2.0) == (0.0,)


@pytest.mark.parametrize("arrivals", [a for a in OPEN if not isinstance(a, Ramp)], ids=lambda a: a.label)
def test_the_rate_only_scales_the_pattern(arrivals: Arrivals) -> None:
    slow, fast = (arrivals.times(np.random.default_rng(5), 6, rate) for rate in (0.5, 5.0))
    assert slow == pytest.approx([t * 10 for t in fast], abs=1e-5)
    if isinstance(arrivals, Stages):
        with pytest.raises(ValueError, match="--stages needs a finite --rate"):
            arrivals.times(np.random.default_rng(5), 3, math.inf)
    else:
        assert arrivals.times(np.random.default_rng(5), 3, math.inf) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("arrivals", [*OPEN, ClosedLoop(4)], ids=lambda arrivals: arrivals.label)
def test_the_workload_and_its_fingerprint_include_the_process(arrivals: Arrivals) -> None:
    rate = math.inf if isinstance(arrivals, ClosedLoop) else 2.0
    workload = build_workload(TABLE, rate=rate, num_prompts=6, arrivals=arrivals)
    poisson = build_workload(TABLE, rate=rate, num_prompts=6)
    described = json.loads(json.dumps(workload.describe(), allow_nan=False))
    assert described["arrivals"] == arrivals.label
    assert described["arrival_process"]["name"] in PROCESSES
    assert workload.prompts_fingerprint == poisson.prompts_fingerprint
    assert (workload.fingerprint == poisson.fingerprint) is (arrivals == POISSON)


def test_other_parameters_give_another_fingerprint() -> None:
    loops = [build_workload(TABLE, rate=math.inf, num_prompts=6, arrivals=ClosedLoop(n)) for n in (2, 3)]
    assert [r.scheduled for r in loops[0].requests] == [r.scheduled for r in loops[1].requests]
    assert loops[0].fingerprint != loops[1].fingerprint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gamma(0.0), "--cv must be between"),
        (lambda: Gamma(math.nan), "--cv must be between"),
        (lambda: Burst(0), "--burst-size must be between 1"),
        (lambda: Ramp(0.0), "--rate-to must be a number"),
        (lambda: Ramp(math.inf), "--rate-to must be a number"),
        (lambda: Ramp(2.0).check(math.inf), "a ramp needs a finite --rate"),
        (lambda: ClosedLoop(0), "--concurrency must be between 1"),
        (lambda: Replay("none", ()), "has no requests"),
        (lambda: Uniform().check(0.0), "the rate must be above 0"),
        (lambda: POISSON.times(np.random.default_rng(0), 3, math.nan), "the rate must be above 0"),
    ],
)
def test_values_out_of_range_are_errors(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_stages_have_their_rates() -> None:
    stages = Stages.parse("1:600,0:100,8:300")
    assert (stages.requests, stages.own_rate) == (3000, 3.0)
    assert stages.label == "stages stages=1:600,0:100,8:300"
    times = np.array(stages.times(np.random.default_rng(3), 3000, 3.0))
    assert times[-1] == pytest.approx(1000.0, rel=0.001)
    counts = np.histogram(times, [0.0, 600.0, 700.0, 1000.0])[0]
    assert counts[0] == pytest.approx(600, abs=80)
    assert counts[1] <= 1
    quiet = np.diff(times[times < 600.0])
    assert stats.kstest(quiet, "expon", args=(0, quiet.mean())).pvalue > 0.01
    faster = np.array(stages.times(np.random.default_rng(3), 3000, 6.0))
    assert faster == pytest.approx(times / 2, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read: write RATE:SECONDS"),
        ("1", "cannot be read"),
        ("1:2:3", "cannot be read"),
        ("-1:60", "a stage of -1 requests per second for 60 s cannot be made"),
        ("1:0", "for 0 s cannot be made"),
        ("0:60", "less than one request"),
        (",".join(["1:1"] * 101), "has 101 stages"),
    ],
)
def test_wrong_stages_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stages.parse(text)


def test_a_quiet_stage_at_the_end_remains_quiet() -> None:
    stages = Stages.parse("4:60,0:60")
    times = np.array(stages.times(np.random.default_rng(3), 600, stages.own_rate))
    busy, quiet, again, end = np.histogram(times, [0.0, 60.0, 119.9, 180.0, 239.9])[0]
    assert busy == pytest.approx(240, abs=50)
    assert again == pytest.approx(240, abs=50)
    assert max(quiet, end) <= 1
    # Fewer requests end earlier, at the same rate.
    begin = np.array(stages.times(np.random.default_rng(3), 60, stages.own_rate))
    assert begin[-1] == pytest.approx(59 / 4.0, rel=0.01)
