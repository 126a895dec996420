"""Intervals and verdicts over seeds, compared with scipy and with their documented error rates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fgbench.metrics.statistics import (
    MIN_SEEDS,
    RESAMPLES,
    Estimate,
    PairedRatio,
    bootstrap_interval,
    student_interval,
)

FIVE = (1.0, 1.3, 0.9, 1.1, 1.6)


def test_fewer_than_three_seeds_have_no_interval() -> None:
    assert MIN_SEEDS == 3
    assert bootstrap_interval(FIVE[:2]) is student_interval(FIVE[:2]) is None
    estimate = Estimate.of(FIVE[:2])
    assert estimate is not None
    assert (estimate.value, estimate.interval) == (pytest.approx(1.15), None)
    assert Estimate.of([]) is None


def test_the_bootstrap_is_scipys_at_the_widened_level() -> None:
    ours = bootstrap_interval(FIVE)
    assert ours is not None
    level = 1 - 2 * stats.norm.sf(math.sqrt(5 / 4) * stats.t.ppf(0.975, 4))
    theirs = stats.bootstrap(
        (FIVE,), np.mean, confidence_level=level, n_resamples=RESAMPLES, method="percentile", rng=0
    ).confidence_interval
    assert (ours.low, ours.high) == (theirs.low, theirs.high)
    plain = stats.bootstrap((FIVE,), np.mean, method="percentile", rng=0).confidence_interval
    assert ours.low < plain.low
    assert ours.high > plain.high
    assert min(FIVE) <= ours.low < sum(FIVE) / 5 < ours.high <= max(FIVE)
    assert bootstrap_interval(FIVE) == ours  # seeded


def test_students_interval_is_scipys() -> None:
    ours = student_interval(FIVE)
    theirs = stats.ttest_1samp(FIVE, 0.0).confidence_interval(0.95)
    assert ours is not None
    assert (ours.low, ours.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))


@pytest.mark.parametrize(("seeds", "low", "high"), [(3, 0.68, 0.82), (5, 0.86, 0.95), (10, 0.90, 0.98)])
@pytest.mark.slow
def test_how_often_the_bootstrap_contains_the_true_mean(seeds: int, low: float, high: float) -> None:
    """The shares are those in the module's docstring. Latencies are skewed: lognormal."""
    draws = np.random.default_rng(3).lognormal(0.0, 0.3, size=(400, seeds))
    true = math.exp(0.3**2 / 2)
    intervals = [bootstrap_interval(tuple(row)) for row in draws.tolist()]
    share = sum(i is not None and i.low <= true <= i.high for i in intervals) / len(intervals)
    assert low <= share <= high


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_verdict_on_equal_backends_is_wrong_in_one_of_twenty_cases(seeds: int) -> None:
    """Seeds differ much more than backends; pairing by seed removes that difference."""
    random = np.random.default_rng(seeds)
    judged = []
    for _ in range(1500):
        workload = random.lognormal(0.0, 1.0, seeds)
        mine, theirs = (workload * random.lognormal(0.0, 0.1, seeds) for _ in range(2))
        ratio = PairedRatio.of(dict(enumerate(mine.tolist())), dict(enumerate(theirs.tolist())))
        assert ratio is not None
        judged.append(ratio.verdict(lower_is_better=True))
    wrong = sum(verdict != "not distinguishable" for verdict in judged) / len(judged)
    assert 0.03 <= wrong <= 0.07


def test_the_verdict_equals_scipys_paired_test_on_logarithms() -> None:
    random = np.random.default_rng(1)
    for shift in (0.7, 0.9, 1.0, 1.1, 1.4):
        theirs = random.lognormal(0.0, 1.0, 6)
        mine = theirs * shift * random.lognormal(0.0, 0.1, 6)
        test = stats.ttest_rel(np.log(mine), np.log(theirs))
        ratio = PairedRatio.of(dict(enumerate(mine.tolist())), dict(enumerate(theirs.tolist())))
        assert ratio is not None
        assert ratio.interval is not None
        assert ratio.value == pytest.approx(stats.gmean(mine / theirs))
        assert ratio.interval.low == pytest.approx(math.exp(test.confidence_interval().low))
        if test.pvalue >= 0.05:
            expected = ("not distinguishable", "not distinguishable")
        else:
            expected = ("better", "worse") if test.statistic < 0 else ("worse", "better")
        assert ratio.verdict(lower_is_better=True) == expected[0]
        assert ratio.verdict(lower_is_better=False) == expected[1]


def test_pairs_have_the_same_seed_and_figures_above_zero() -> None:
    ratio = PairedRatio.of({0: 2.0, 1: 8.0, 2: 0.0, 3: 5.0}, {1: 4.0, 2: 1.0, 0: 2.0})
    assert ratio is not None
    assert ratio.seeds == 2
    assert ratio.value == pytest.approx(math.sqrt(2.0))
    assert ratio.verdict(lower_is_better=True) is None
    assert PairedRatio.of({0: 1.0}, {1: 1.0}) is None


def test_ratios_without_variance_are_judged_too() -> None:
    """Simulations give such ratios."""
    same = {seed: float(seed + 1) for seed in range(3)}
    half = {seed: value / 2 for seed, value in same.items()}
    equal, better = PairedRatio.of(same, same), PairedRatio.of(half, same)
    assert equal is not None
    assert better is not None
    assert equal.verdict(lower_is_better=True) == "not distinguishable"
    assert better.verdict(lower_is_better=True) == "better"
