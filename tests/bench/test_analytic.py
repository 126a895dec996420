"""bench/analytic.py with profiles whose measured times are known multiples of the predicted ones."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import analytic
import pytest

from fgengine.analytic import analytic_cost, analytic_profile
from fgengine.devices import DEVICES, GIB, custom_device
from fgengine.efficiency import Efficiency
from fgengine.model.catalog import shape_of
from fgengine.profile import Profile

MEASURED = Profile.load(Path(__file__).parents[1] / "data" / "profile.json")


@pytest.fixture
def twice_as_slow() -> Profile:
    """A profile whose measured steps take twice as long as the assumed efficiencies predict."""
    spec = custom_device(
        memory_bytes=GIB,
        bytes_per_second=MEASURED.ceilings.bytes_per_second,
        flops=MEASURED.ceilings.flops_per_second,
        link_bytes_per_second=1e10,
        dtype=MEASURED.dtype,
    )
    cost = analytic_cost(shape_of(MEASURED.model), spec, MEASURED.dtype, Efficiency())
    points = tuple(replace(point, seconds=2 * cost.step_seconds(point.shape)) for point in MEASURED.points)
    return replace(MEASURED, points=points)


def test_the_error_is_predicted_by_measured_minus_1(twice_as_slow: Profile) -> None:
    found = analytic.compared(twice_as_slow)
    assert sum(row["number"] for row in found) == len(MEASURED.points)
    for row in found:
        assert row["assumed"] == pytest.approx({"min": -0.5, "median": -0.5, "max": -0.5, "median_size": 0.5})
        assert row["roofline"]["max"] < -0.5


def test_the_script_prints_a_table_or_json(
    twice_as_slow: Profile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "cpu.json"
    twice_as_slow.save(path)
    monkeypatch.setattr(sys, "argv", ["analytic.py", str(path)])
    analytic.main()
    assert "-50% (-50% to -50%)" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["analytic.py", str(path), "--json"])
    analytic.main()
    assert json.loads(capsys.readouterr().out)["steps"][0]["assumed"]["median"] == pytest.approx(-0.5)


def test_an_analytic_profile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "h200.json"
    analytic_profile("opt-125m", shape_of("opt-125m"), DEVICES["h200"], "float16").save(path)
    monkeypatch.setattr(sys, "argv", ["analytic.py", str(path)])
    with pytest.raises(SystemExit):
        analytic.main()
    assert "is an analytic profile: give a measured one" in capsys.readouterr().err
