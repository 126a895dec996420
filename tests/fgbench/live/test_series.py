"""Tests of sparklines and of the series of values that they show."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgbench.live.layout import BLOCKS, MAX_VALUES, Series, sparkline


def series_of(*values: float | None) -> Series:
    series = Series()
    for value in values:
        series.add(value)
    return series


def test_a_sparkline_has_one_character_per_value() -> None:
    assert sparkline([0, 1, 2, 4, None, 8]) == "▁▁▂▄ █"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([]) == ""


@given(st.lists(st.none() | st.floats(0, 1e12), min_size=1, max_size=50))
def test_higher_values_are_never_drawn_lower(values: list[float | None]) -> None:
    drawn = sparkline(values)
    assert len(drawn) == len(values)
    pairs = sorted((v, BLOCKS.index(c)) for v, c in zip(values, drawn, strict=True) if v is not None)
    assert [height for _, height in pairs] == sorted(height for _, height in pairs)


@given(st.lists(st.none() | st.floats(0, 1e6), max_size=700), st.integers(1, 80))
def test_cells_fit_the_width_and_cover_all_stored_values(values: list[float | None], width: int) -> None:
    series = series_of(*values)
    cells = series.cells(width)
    assert len(cells) <= width
    known = [cell for cell in cells if cell is not None]
    stored = [value for value in values[-MAX_VALUES:] if value is not None]
    assert all(min(stored) <= cell * (1 + 1e-12) and cell <= max(stored) * (1 + 1e-12) for cell in known)
    assert len(series) == min(len(values), MAX_VALUES)
    assert series.maximum == max(stored, default=None)


def test_few_values_are_drawn_unchanged_and_many_as_means() -> None:
    assert series_of(1, None, 3).cells(10) == [1, None, 3]
    assert series_of(*range(12)).cells(7) == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]


def test_a_curve_moves_to_the_left_and_does_not_change() -> None:
    """A new value changes the last cell or adds a cell; earlier cells do not change."""
    series = series_of(*(float(i % 7) for i in range(MAX_VALUES + 100)))
    before = series.cells(61)
    series.add(3.0)
    after = series.cells(61)
    assert after[5:50] in (before[5:50], before[6:51])


def test_a_missing_value_is_not_zero() -> None:
    assert Series().last is None
    assert Series().maximum is None
    assert series_of(None).cells(5) == [None]
    assert series_of(1.0, None).last is None


@pytest.mark.parametrize("width", [0, -3])
def test_no_cells_without_width(width: int) -> None:
    assert series_of(1.0, 2.0).cells(width) == []
