"""The rate at which a figure reaches its limit, by hand and on the published curves."""

from __future__ import annotations

import math

import pytest

from fgbench.metrics.crossing import Range, rate_at


def test_the_rate_is_interpolated_linearly() -> None:
    curve = [(3.0, 0.7), (1.0, 0.1), (2.0, 0.2)]
    assert rate_at(curve, 0.3) == Range(2.2, 2.2)  # a fifth of the way from 0.2 to 0.7
    assert rate_at(curve, 0.2) == Range(2.0, 2.0)  # a figure equal to the limit meets it


def test_there_is_no_extrapolation() -> None:
    curve = [(1.0, 0.1), (2.0, 0.2)]
    above, below = rate_at(curve, 0.3), rate_at(curve, 0.05)
    assert above == Range(2.0, math.inf)
    assert below == Range(0.0, 1.0)
    assert rate_at([(1.0, 0.3)], 0.3) == Range(1.0, math.inf)  # a figure equal to the limit meets it
    assert rate_at([], 0.3) is None
    assert rate_at([(math.inf, 0.1)], 0.3) is None


def test_the_first_crossing_counts() -> None:
    """Once a rate exceeds the limit, no higher rate counts, even if its figure is within the limit again."""
    assert rate_at([(1.0, 0.1), (2.0, 0.5), (3.0, 0.1), (4.0, 0.5)], 0.3) == Range(1.5, 1.5)


def test_a_range_is_shown_as_text() -> None:
    ranges = (
        Range(2.414, 2.414),
        Range(4.0, math.inf),
        Range(0.0, 0.5),
        Range(0.0, math.inf),
        Range(1.0, 2.0),
    )
    assert [each.describe("/s") for each in ranges] == ["2.41/s", "> 4/s", "< 0.5/s", "-", "1 to 2/s"]
    assert [each.is_known for each in ranges] == [True, True, True, False, True]


def test_a_ratio_is_known_as_far_as_both_rates_are() -> None:
    two, above, below = Range(2.0, 2.0), Range(4.0, math.inf), Range(0.0, 1.0)
    assert two.over(Range(4.0, 4.0)) == Range(0.5, 0.5)
    assert above.over(two) == Range(2.0, math.inf)
    assert two.over(above) == Range(0.0, 0.5)
    assert two.over(below) == Range(2.0, math.inf)
    assert below.over(above) == Range(0.0, 0.25)
    assert not above.over(above).is_known
    assert not below.over(below).is_known


def test_with_several_bounds_the_lowest_rate_counts() -> None:
    assert Range(2.0, 2.0).and_below(Range(4.0, math.inf)) == Range(2.0, 2.0)
    assert Range(2.0, 2.0).and_below(Range(0.0, 1.0)) == Range(0.0, 1.0)


def test_the_papers_curves_give_the_papers_ratios() -> None:
    """Figure 11 of the FastServe paper: mean normalized latency of OPT-13B on ShareGPT, with the printed
    ratios of the rates at 0.3 s per token."""
    rates = (0.1, 0.2, 0.5, 1, 1.5, 1.75, 2, 2.25, 2.5, 3, 4, 4.5, 5, 5.5, 6, 10)
    curves = {
        "fastertransformer": (0.054, 0.499, 1.376, 4.492),
        "vllm": (0.027, 0.027, 0.029, 0.031, 0.035, 0.058, 0.11, 0.245, 0.522, 0.972, 1.59),
        "fcfs": (0.024, 0.029, 0.033, 0.038, 0.045, 0.052, 0.091, 0.13, 0.403, 0.849, 1.459),
        "fastserve": (
            *(0.034, 0.033, 0.033, 0.039, 0.045, 0.043, 0.047, 0.048, 0.048),
            *(0.063, 0.106, 0.187, 0.331, 0.671, 0.856, 1.425),
        ),
    }
    at_slo = {name: rate_at(zip(rates, curve, strict=False), 0.3) for name, curve in curves.items()}
    ours = at_slo.pop("fastserve")
    assert ours is not None
    ratios = {name: ours.over(theirs).exact for name, theirs in at_slo.items() if theirs is not None}
    assert ratios == {
        "fastertransformer": pytest.approx(31.5, abs=0.05),
        "vllm": pytest.approx(2.13, abs=0.005),
        "fcfs": pytest.approx(2.03, abs=0.005),
    }


def test_an_infinite_figure_is_not_interpolated() -> None:
    assert rate_at([(1.0, 0.1), (2.0, math.inf), (3.0, 0.2)], 0.3) == Range(1.0, 2.0)
    assert rate_at([(1.0, math.inf)], 0.3) == Range(0.0, 1.0)
