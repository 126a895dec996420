"""Fixtures for all tests: Triton's interpreter on machines without a GPU, a tiny model, a busy program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Triton reads this variable when it is first imported, so it is set before any test is imported. The driver's
# devices are checked instead of torch, because importing torch takes longer than most of these tests.
if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Hugging Face folder with a config but no weights, for --use-dummy-weights."""
    folder = tmp_path_factory.mktemp("tiny-model")
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA))
    return folder


START_ALONE = """
import subprocess, sys
silent = subprocess.DEVNULL
busy = [sys.executable, "-c", "while True: pass"]
print(subprocess.Popen(busy, start_new_session=True, stdout=silent, stderr=silent).pid)
"""


@pytest.fixture
def busy_program() -> Iterator[int]:
    """Yield the process id of a program that computes without a pause and is no child of the test process."""
    started = subprocess.run([sys.executable, "-c", START_ALONE], capture_output=True, check=True)
    pid = int(started.stdout)
    yield pid
    os.kill(pid, signal.SIGKILL)
