"""Tests of ``fgbench predictor`` with a small file of conversations."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fgbench.cli.main import app
from fgbench.cli.predictor import app as predictor_app

WORDS = {True: ["essay", "detailed", "explain", "long"], False: ["yes", "no", "short", "word"]}


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    """A file in which some prompt words lead to long answers, and others to short answers."""
    source, lines = random.Random(0), []
    for i in range(400):
        long = source.random() < 0.5
        prompt = " ".join(source.choice(WORDS[long]) for _ in range(12)) + f" {i}"
        answer = "word " * (source.randint(150, 250) if long else source.randint(8, 15))
        lines.append(json.dumps({"id": f"c{i}_0", "prompt": prompt, "completion": answer}))
    path = tmp_path / "conversations.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A copy of the tiny model's folder, with a tokenizer that makes one token per word."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "worded"
    shutil.copytree(tiny_model, folder)
    words = ["?", "word", *WORDS[True], *(w for w in WORDS[False] if w != "word")]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(predictor_app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.mark.slow
def test_eval_measures_and_saves_nothing(conversations: Path, model: str, tmp_path: Path) -> None:
    code, output = run("eval", "--model", model, "--dataset-path", str(conversations), "--json")
    assert code == 0
    for quality in json.loads(output[output.index("{") :]).values():
        assert quality["spearman"] > 0.6
        assert quality["pairwise_order"] > 0.7
        assert 40 < quality["judged_on"] < 130
    assert not (tmp_path / "cache" / "predictors").exists()


def test_show_describes_what_train_saved(conversations: Path, model: str) -> None:
    with pytest.raises(ValueError, match="predictor train"):
        run("show", "--model", model)
    code, _ = run("train", "--model", model, "--dataset-path", str(conversations), "--num", "100")
    assert code == 0
    code, output = run("show", "--model", model)
    assert code == 0
    assert "trained on 400 answers" in output  # 100 answers in each of four epochs


def test_train_leaves_out_the_conversations_of_without(conversations: Path, model: str) -> None:
    with pytest.raises(ValueError, match="no conversation"):
        run("train", "--model", model, "--dataset-path", str(conversations), "--without", str(conversations))
    with pytest.raises(ValueError, match="there is no file"):
        run("train", "--model", model, "--dataset-path", str(conversations), "--without", "nowhere.jsonl")


def test_help_has_an_example() -> None:
    for verb in ("train", "eval", "show"):
        result = CliRunner().invoke(app, ["predictor", verb, "--help"])
        assert result.exit_code == 0
        assert "fgbench predictor" in result.output
