from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fgbench.cli.profile import profile
from fgengine import machine_load, profiler
from fgengine.cache import is_whole
from fgengine.machine_load import MachineLoad
from fgengine.profile import Profile

app = typer.Typer()
app.command()(profile)


@pytest.fixture
def arguments(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path))
    settings = ["--device", "cpu", "--dtype", "float32", "--patience", "0"]
    return ["--model", str(tiny_model), "--use-dummy-weights", "--quick", *settings]


def run(arguments: list[str]) -> Any:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})


def set_load(monkeypatch: pytest.MonkeyPatch, *cores: float) -> None:
    """Set the cores that other programs use, one value per measurement; the last value repeats."""
    left = list(cores)

    def between(before: object, after: object) -> MachineLoad:
        now = left.pop(0) if len(left) > 1 else left[0]
        return MachineLoad(1.0, now, 0.0, None, None, (("make", now),))

    for module in (machine_load, profiler):
        monkeypatch.setattr(module, "load_between", between)
    monkeypatch.setattr(machine_load, "LOOK_SECONDS", 0.0)


@pytest.mark.slow
def test_a_profile_is_measured_checked_and_written_where_serve_looks(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_load(monkeypatch, 0.0)
    result = run(arguments)
    assert result.exit_code == 0, result.output
    for expected in ("points held out from the fit", "median error on held-out points", "no step is faster"):
        assert expected in result.output
    (written,) = (tmp_path / "profiles").glob("tiny-*-float32.json")
    assert is_whole(written)
    loaded = Profile.load(written)
    assert loaded.cost.min_iteration_seconds > 0.0
    assert loaded.median_error >= 0.0
    assert loaded.conditions is not None
    assert not loaded.conditions.busy


def test_nothing_is_measured_while_another_program_is_busy(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_load(monkeypatch, 0.9)
    result = run(arguments)
    assert result.exit_code == 1
    assert (
        "other programs took 0.90 cores (make 0.90); a profile measured now would be wrong" in result.output
    )
    assert "points held out" not in result.output
    assert not list(tmp_path.glob("profiles/*.json"))


@pytest.mark.slow
def test_a_disturbed_profile_is_not_written(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_load(monkeypatch, 0.0, 0.9)
    result = run(arguments)
    assert result.exit_code == 1
    assert "other programs used 0.90 cores during the measurement" in " ".join(result.output.split())
    assert not list(tmp_path.glob("profiles/*.json"))


@pytest.mark.slow
def test_profile_waits_for_a_quiet_machine(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_load(monkeypatch, 0.9, 0.9, 0.0)
    result = run([*arguments, "--patience", "30"])
    assert result.exit_code == 0, result.output
    assert len(list(tmp_path.glob("profiles/*.json"))) == 1


@pytest.mark.slow
def test_even_if_busy_measures_and_records_the_busy_machine(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_load(monkeypatch, 0.9)
    out = tmp_path / "mine.json"
    result = run([*arguments, "--even-if-busy", "--out", str(out)])
    assert result.exit_code == 0, result.output
    conditions = Profile.load(out).conditions
    assert conditions is not None
    assert (conditions.busy, conditions.other_cores) == (True, 0.9)


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--model", "smollm3", "--quick", "--out", str(tmp_path / "p.json")])
    assert isinstance(result.exception, ValueError)
    assert "smollm3" in str(result.exception)
    assert not (tmp_path / "p.json").exists()
