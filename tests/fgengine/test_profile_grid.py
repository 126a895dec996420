"""The steps that a profile measures."""

from __future__ import annotations

import pytest

from fgengine.profile_grid import FULL, GPU, QUICK, Grid

SMALL = Grid((16, 64, 256), (64,), (1, 4, 8), (32, 128, 256), (), repeats=3, seconds_per_point=60.0)


@pytest.mark.parametrize("grid", [QUICK, FULL, GPU, SMALL])
def test_held_out_points_are_within_the_grid_and_at_most_a_third(grid: Grid) -> None:
    points = grid.points()
    held_out = [point for point in points if point.held_out]
    assert 2 <= len(held_out) <= len(points) / 3
    for point in held_out:
        inside = [
            min(axis) < value < max(axis)
            for value, axis in (
                (point.prefill_tokens, grid.prefill),
                (point.decode_requests, grid.decode),
                (point.context_tokens, grid.context),
            )
            if value
        ]
        assert any(inside), point
