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
from fgengine.profile_cache import newest_profile

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


@pytest.mark.slow
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


A100 = ["--device-spec", "a100-40gb", "--model", "opt-13b"]


def test_the_profile_of_a_device_that_is_not_here_is_computed_and_written(tmp_path: Path) -> None:
    out = tmp_path / "a100.json"
    result = run([*A100, "--out", str(out)])
    assert result.exit_code == 0, result.output
    for expected in (
        "opt-13b on a100-40gb, float16: analytic, not measured",
        "decode 64 x 512",
        "reading KV",
        "NVIDIA A100 Tensor Core GPU data sheet",
        "85% of the memory bandwidth: ",
    ):
        assert expected in result.output
    written = Profile.load(out)
    assert written.analytic is not None
    assert written.analytic.spec.name == "a100-40gb"


def test_without_a_file_name_it_is_written_where_no_simulation_takes_it_for_a_measured_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path))
    assert run(A100).exit_code == 0
    assert (tmp_path / "profiles" / "analytic" / "opt-13b-a100-40gb-float16.json").is_file()
    assert newest_profile("opt-13b") is None


OWN = ["--bandwidth", "2TB/s", "--flops", "400TFLOP/s", "--link", "64GB/s", "--memory", "64GiB"]


def test_a_device_of_ones_own_is_profiled_by_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "own.json"
    result = run(["--model", "opt-13b", *OWN, "--out", str(out)])
    assert result.exit_code == 0, result.output
    analytic = Profile.load(out).analytic
    assert analytic is not None
    assert (analytic.spec.bytes_per_second, analytic.spec.half_flops) == (2e12, 400e12)


def test_the_overhead_of_a_step_is_written_and_shown(tmp_path: Path) -> None:
    out = tmp_path / "slow.json"
    result = run([*A100, "--step-overhead-ms", "8.5", "--out", str(out)])
    assert "8.5 ms for each step: set by hand" in result.output
    analytic = Profile.load(out).analytic
    assert analytic is not None
    assert (analytic.efficiency.step_seconds, analytic.efficiency.layer_seconds) == (0.0085, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step-overhead-ms", "3"], "--step-overhead-ms is for a device that is not here"),
        (["--device-spec", "a1000"], "there is no device 'a1000' in the catalog"),
        ([*A100, "--link", "64GB/s"], "leave out --link"),
        ([*A100, "--quick"], "--quick is for measured profiles"),
        ([*A100, "--patience", "3"], "--patience is for measured profiles"),
        (OWN[:4], "add --link and --memory"),
        ([*OWN, "--bandwidth", "fast"], "--bandwidth: 'fast' is not a bandwidth"),
        ([*OWN, "--memory", "64"], "--memory: '64' is not a size"),
    ],
)
def test_what_describes_no_device_is_refused(arguments: list[str], message: str) -> None:
    result = run(arguments)
    assert message in str(result.exception)
