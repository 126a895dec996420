"""Hooks and fixtures for all tests: Triton's interpreter, threads, CUDA errors, a tiny model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

# Triton reads this variable when it is first imported, so it is set before any test is imported. The driver's
# devices are checked instead of torch, because importing torch takes longer than most of these tests.
if not Path("/dev/nvidiactl").exists() and not Path("/dev/dxg").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The processes of pytest-xdist share the cores, and so do the servers that tests start. If there are more
# threads than cores, threads mostly wait for each other. OpenMP reads this variable when torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

CUDA_ERROR = pytest.StashKey[str]()
"""Key of a test's stash for the error that made CUDA unusable in this process."""
FATAL_WORDS = (
    "cuda error",
    "cuda driver error",
    "illegal memory access",
    "misaligned address",
    "unspecified launch failure",
    "device-side assert",
)


def breaks_cuda(error: BaseException) -> bool:
    """Whether the error makes CUDA unusable in this process.

    An illegal address does; out of memory or a kernel that does not compile does not.
    """
    text = str(error).lower()
    return any(words in text for words in FATAL_WORDS) and "out of memory" not in text


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in tests/e2e. Run the longest test first, so that others run next to it."""
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.e2e)
    items.sort(key=lambda item: item.path.name != "test_installing.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    on_gpu = item.get_closest_marker("gpu") is not None
    if on_gpu and call.excinfo is not None and breaks_cuda(call.excinfo.value):
        item.stash[CUDA_ERROR] = str(call.excinfo.value).strip().partition("\n")[0]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """End the process after a test with a CUDA error, because every later test would fail as well."""
    done = yield
    if CUDA_ERROR in item.stash:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(
                1
            )  # the report is sent already; pytest-xdist starts another worker for the remaining tests
        pytest.exit(
            f"{item.nodeid} left CUDA unusable in this process ({item.stash[CUDA_ERROR]}). Later "
            "tests were not run: leave it out with --deselect, or run with pytest-xdist (-n 8), which starts "
            "a new process after such an error.",
            returncode=1,
        )
    return done


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


@pytest.fixture(autouse=True)
def same_threads_after_the_test() -> Iterator[None]:
    """Give the next test as many compute threads as this one had at its start."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else None
    yield
    if torch is not None and torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Hugging Face folder with a config but no weights, for --use-dummy-weights."""
    folder = tmp_path_factory.mktemp("tiny-model")
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA))
    return folder


@pytest.fixture(scope="session")
def compiled_kernels() -> Path:
    """Return the folder with the compiled CPU kernels. They are compiled once for all tests."""
    from fgengine.cache import cache_folder
    from fgengine.ops.cpu.build import kernels

    for bfloat16 in (False, True):
        kernels.__wrapped__(bfloat16)
    return cache_folder() / "kernels"


@pytest.fixture
def new_cache(tmp_path: Path, compiled_kernels: Path) -> Path:
    """Return a cache folder that contains only the compiled CPU kernels. Compiling them takes seconds."""
    folder = tmp_path / "cache"
    folder.mkdir()
    if compiled_kernels.is_dir():
        shutil.copytree(compiled_kernels, folder / "kernels")
    return folder


START_DETACHED = """
import subprocess, sys
silent = subprocess.DEVNULL
busy = [sys.executable, "-c", "while True: pass"]
print(subprocess.Popen(busy, start_new_session=True, stdout=silent, stderr=silent).pid)
"""


@pytest.fixture
def busy_program() -> Iterator[int]:
    """Yield the process id of a program that always computes and is not a child of the test process."""
    started = subprocess.run([sys.executable, "-c", START_DETACHED], capture_output=True, check=True)
    pid = int(started.stdout)
    yield pid
    os.kill(pid, signal.SIGKILL)
