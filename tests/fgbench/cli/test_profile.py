from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fgbench.cli.profile import profile
from fgengine.profile import Profile

app = typer.Typer()
app.command()(profile)


def test_a_profile_is_measured_judged_and_written_where_serve_looks(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path))
    arguments = ["--model", str(tiny_model), "--use-dummy-weights", "--quick", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--dtype", "float32"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    for expected in ("points kept from the fit", "median error on held-out points", "no step beats them"):
        assert expected in result.output
    (written,) = (tmp_path / "profiles").glob("tiny-*-float32.json")
    loaded = Profile.load(written)
    assert loaded.cost.min_iteration_seconds > 0.0
    assert loaded.median_error >= 0.0


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--model", "smollm3", "--quick", "--out", str(tmp_path / "p.json")])
    assert isinstance(result.exception, ValueError)
    assert "smollm3" in str(result.exception)
    assert not (tmp_path / "p.json").exists()
