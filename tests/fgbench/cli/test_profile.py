from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fgbench.cli.profile import profile
from fgengine.profile import Profile

app = typer.Typer()
app.command()(profile)

CONFIG = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


@pytest.fixture
def tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_a_profile_is_measured_judged_and_written_where_serve_looks(tiny_model: Path) -> None:
    arguments = ["--model", str(tiny_model), "--use-dummy-weights", "--quick", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--dtype", "float32"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    for expected in ("points kept from the fit", "median error on held-out points", "no step beats them"):
        assert expected in result.output
    (written,) = (tiny_model.parent / "cache" / "profiles").glob("tiny-*-float32.json")
    loaded = Profile.load(written)
    assert loaded.cost.min_iteration_seconds > 0.0
    assert loaded.median_error >= 0.0


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--model", "smollm3", "--quick", "--out", str(tmp_path / "p.json")])
    assert isinstance(result.exception, ValueError)
    assert "smollm3" in str(result.exception)
    assert not (tmp_path / "p.json").exists()
