"""A damaged or impossible model folder ends every verb in one sentence that names the file and the field."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fgengine.model.dummy_tokenizer import write_byte_tokenizer


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    write_byte_tokenizer(folder, 512, eos=2, bos=1)
    return folder


def refusal(*argv: str) -> tuple[int, str]:
    """Run fgbench; return its exit status, and its only sentence."""
    done = subprocess.run(
        [sys.executable, "-m", "fgbench", *argv], capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line]
    return done.returncode, lines[-1]


def an_index_that_is_a_list(folder: Path) -> str:
    (folder / "model.safetensors.index.json").write_text("[]")
    return "model.safetensors.index.json must hold a JSON object, not a list"


def a_token_id_of_four_billions(folder: Path) -> str:
    vocab = {"a": 4294967290}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel", "vocab": vocab}}))
    return "tokenizer.json: model.vocab.a is 4294967290, but it must be from 0 to 4194303"


def a_vocabulary_of_100(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    return f"tokenizer.json has token ids up to 511, but vocab_size in {folder}/config.json is 100"


@pytest.mark.parametrize(
    "damage", [an_index_that_is_a_list, a_token_id_of_four_billions, a_vocabulary_of_100]
)
def test_serve_refuses_a_damaged_folder(folder: Path, damage: Callable[[Path], str]) -> None:
    words = damage(folder)
    status, sentence = refusal("serve", "--model", str(folder), "--device", "cpu", "--port", "0")
    assert status == 1
    assert sentence.startswith("fgbench serve: ")
    assert f"{folder}/{words}" in sentence


def test_a_table_of_positions_that_does_not_fit_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"head_dim": 4096}
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2**24}))
    argv = ("--model", str(folder), "--use-dummy-weights", "--device", "cpu", "--dtype", "float32")
    status, sentence = refusal("serve", *argv, "--port", "0")
    assert status == 1
    assert "does not fit into memory: it needs" in sentence
    assert "rotary embedding 384 GiB" in sentence


@pytest.mark.parametrize(
    "verb",
    [
        ("serve", "--port", "0"),
        ("serve", "--use-dummy-weights", "--port", "0"),
        ("run", "--use-dummy-weights", "--rate", "5", "--num-prompts", "3"),
        ("profile",),
        ("simulate", "--device-spec", "a100-40gb", "--rate", "5", "--num-prompts", "3"),
    ],
    ids=" ".join,
)
def test_every_verb_refuses_an_impossible_shape(folder: Path, verb: tuple[str, ...]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2**30}))
    status, sentence = refusal(*verb, "--model", str(folder))
    assert status == 2
    assert sentence == (
        f"fgbench: {folder}/config.json: num_hidden_layers is 1073741824, "
        "but it must be a whole number <= 4096"
    )
