"""Estimates of a sweep's duration, before and while it runs."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from fgbench.spec.load import Load
from fgbench.sweeping.estimate import Pace, SweepProgress, load_seconds
from fgbench.workload.arrivals import ClosedLoop
from fgengine.units import clock


def test_a_load_takes_the_time_of_arrivals_or_of_the_server() -> None:
    assert load_seconds(Load(rate=2.0, num_prompts=100), None) == 50.0
    assert load_seconds(Load(rate=2.0, num_prompts=100), 4.0) == 50.0
    assert load_seconds(Load(rate=2.0, num_prompts=100), 1.0) == 100.0
    assert load_seconds(Load(rate=2.0, num_prompts=100, duration=10.0), None) == 10.0
    assert load_seconds(Load(rate=2.0, num_prompts=100, duration=10.0), 1.0) == 20.0
    assert load_seconds(Load(rate=math.inf, num_prompts=100), 1.0) == 100.0
    assert load_seconds(Load(rate=math.inf, num_prompts=100), None) is None
    assert load_seconds(Load(arrivals=ClosedLoop(4), num_prompts=100), 2.0) == 50.0
    assert load_seconds(Load(arrivals=ClosedLoop(4), num_prompts=100, duration=10.0), 2.0) == 10.0
    assert load_seconds(Load(arrivals=ClosedLoop(4), num_prompts=10**4, duration=10.0), None) == 10.0


def test_estimates_are_corrected_by_actual_times() -> None:
    pace = Pace()
    assert pace.left([10.0, 20.0]) == 30.0
    pace.took(15.0, 10.0)
    assert pace.left([20.0]) == pytest.approx(30.0)
    assert pace.left([20.0, None]) is None
    pace.took(2.0, None)
    pace.took(4.0, None)
    assert pace.left([20.0, None, None]) == pytest.approx(36.0)
    assert pace.left([]) == 0.0


def test_the_line_and_the_header_show_the_progress() -> None:
    now = [100.0]
    total = SweepProgress(lambda: now[0])
    total.begin("point 1 of 3", "fastgen, 1/s, seed 0", 0.0, 60.0, [60.0, 60.0])
    assert total.line() == "point 1 of 3: fastgen, 1/s, seed 0; 0:00 elapsed, about 3:00 left"
    now[0] += 90.0
    assert total.end() == 90.0
    total.begin("point 2 of 3", "fastgen, 2/s, seed 0", 1 / 3, 60.0, [60.0])
    now[0] += 30.0
    assert total.line() == "point 2 of 3: fastgen, 2/s, seed 0; 2:00 elapsed, about 2:30 left"
    console = Console(file=io.StringIO(), width=100)
    console.print(total.header())
    output = console.file
    assert isinstance(output, io.StringIO)
    assert "point 2 of 3" in output.getvalue()
    assert "about 2:30 left" in output.getvalue()
    now[0] += 1000.0
    assert total.line().endswith("about 0:00 left")  # never negative


def test_clock() -> None:
    assert [clock(s) for s in (0.4, 59.6, 125, 3725)] == ["0:00", "1:00", "2:05", "1:02:05"]
