"""Tests of ``fgbench datasets``: help, lists, figures, and error messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from fgbench.cli.main import app
from fgbench.workload.reading import DATASETS

ALPACA = {"instruction": "w w w w", "input": "", "output": "w w w w w"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path / "cache"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> str:
    """A model folder with a tokenizer that makes one token per word."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_model / "config.json").read_text())
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def datasets(*argv: object) -> Any:
    return CliRunner().invoke(app, ["datasets", *map(str, argv)])


@pytest.mark.parametrize("verb", ["list", "pull", "show"])
def test_help_has_an_example(verb: str) -> None:
    done = datasets(verb, "--help")
    assert done.exit_code == 0
    assert f"fgbench datasets {verb}" in done.output


def test_list_names_all_datasets_and_which_are_present(tmp_path: Path) -> None:
    done = datasets("list")
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in DATASETS)
    assert "by hand: pull --from" in done.output
    source = tmp_path / "alpaca_data.json"
    source.write_text(json.dumps([ALPACA]))
    assert datasets("pull", "alpaca", "--from", source).exit_code == 0
    row = next(line for line in datasets("list").output.splitlines() if line.strip().startswith("alpaca"))
    assert " yes " in row


def test_pull_saves_a_file_and_reports_broken_records(tmp_path: Path, model: str) -> None:
    source = tmp_path / "alpaca_data.json"
    source.write_text((json.dumps(ALPACA) + "\n") * 3 + '{"cut')
    done = datasets("pull", "alpaca", "--from", source)
    assert done.exit_code == 0, done.output
    assert "1 record is broken or cut off and left out" in done.output
    assert "3 records of alpaca are saved in" in done.output
    assert "alpaca is in" in datasets("pull", "alpaca").output
    shown = datasets("show", "alpaca", "--model", model)
    assert shown.exit_code == 0, shown.output
    assert "alpaca: 3 records" in shown.output


def test_show_prints_counts_quantiles_and_a_histogram(tmp_path: Path, model: str) -> None:
    path = tmp_path / "mine.jsonl"
    records = [{"prompt": "w " * n, "output_tokens": 2 * n} for n in range(1, 101)]
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + "{oops\n")
    done = datasets("show", path, "--model", model)
    assert done.exit_code == 0, done.output
    assert "mine: 100 records" in done.output
    assert "1 record is broken or cut off and left out" in done.output
    prompt = next(line for line in done.output.splitlines() if line.strip().startswith("prompt "))
    assert prompt.split() == ["prompt", "50.5", "1", "50", "90", "95", "99", "100"]
    bars = next(line for line in done.output.splitlines() if line.strip().startswith("64-127"))
    assert "█ 37" in bars  # prompts of 64 to 100 tokens
    assert "█ 32" in bars  # outputs of 64, 66, .. 126


def test_show_as_json(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("timestamp,prompt_tokens,output_tokens\n0,5,7\n1,6,8\n4,7,9\n9,1,0\n")
    done = datasets("show", path, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["records"], found["prompt_tokens"]["mean"], found["output_tokens"]["max"]) == (3, 6.0, 9.0)
    assert found["times"] == pytest.approx({"seconds": 4.0, "rate": 0.5, "cv": 0.5})
    assert "1 requests without prompt or output tokens" in done.stderr
    plain = datasets("show", path)
    assert "0.5 requests/s on average" in plain.output


def test_show_of_synthetic_lengths() -> None:
    done = datasets("show", "synthetic", "--input-len", "8", "--output-len", "zipf:1.1:64", "--sample", 500)
    assert done.exit_code == 0, done.output
    assert "synthetic-8xzipf.1.1.64: unlimited; 500 requests drawn" in done.output


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["show", "nope"], "there is no dataset or file 'nope'"),
        (["show", "alpaca"], "the dataset alpaca is not on this machine: get alpaca_data.json"),
        (["show", "jsonl"], "is your own file"),
        (["show", "synthetic", "--output-len", "5-3"], "lengths must be ordered"),
        (["pull", "nope"], "there is nothing to pull for 'nope'"),
        (["pull", "mmlu"], "the dataset mmlu is not on this machine"),
        (["pull", "mmlu", "--from", "/no/such"], "--from: there is no file /no/such"),
        (["pull", "sharegpt", "--from", "x"], "--from does not work with sharegpt, which is downloaded"),
    ],
)
def test_a_mistake_is_reported_in_one_sentence(argv: list[str], message: str) -> None:
    done = datasets(*argv)
    assert done.exit_code == 2
    assert message in done.stderr
