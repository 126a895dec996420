"""Tests of running quantiles against the exact quantiles of a sample."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgbench.client.state import MAX_VALUE, MIN_VALUE, Running


@given(st.lists(st.floats(MIN_VALUE, MAX_VALUE), min_size=1, max_size=200), st.floats(0.0, 1.0))
def test_quantiles_are_within_two_percent_of_an_order_statistic(sample: list[float], share: float) -> None:
    running = Running()
    for value in sample:
        running.add(value)
    exact = sorted(sample)[max(1, math.ceil(share * len(sample))) - 1]
    assert running.quantile(share) == pytest.approx(exact, rel=0.02)
    assert running.mean == pytest.approx(sum(sample) / len(sample))
    assert running.count == len(sample)


def test_an_empty_sample_and_values_out_of_range() -> None:
    running = Running()
    assert running.mean is None
    assert running.quantile(0.5) is None
    for value in (0.0, 1e-9, 1e12):
        running.add(value)
    assert running.quantile(0.5) == MIN_VALUE
    assert running.quantile(1.0) == pytest.approx(MAX_VALUE, rel=0.05)
