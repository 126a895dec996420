"""A CUDA error ends the test process, because all later tests would fail as well."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
TESTS = """
import pytest

@pytest.mark.gpu
def test_first():
    raise RuntimeError({error!r})

def test_second():
    pass
"""
ILLEGAL_ADDRESS = "CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA"


def run_two_tests(folder: Path, error: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run two tests, the first of which raises ``error``."""
    shutil.copy(CONFTEST, folder)
    (folder / "test_it.py").write_text(TESTS.format(error=error))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: it\n")
    without_xdist = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(folder)],
        env=without_xdist | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "error", [ILLEGAL_ADDRESS, "Triton Error [CUDA]: misaligned address"], ids=["torch", "Triton"]
)
@pytest.mark.slow
def test_after_a_cuda_error_no_other_test_runs(tmp_path: Path, error: str) -> None:
    done = run_two_tests(tmp_path, error)
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    assert "passed" not in done.stdout
    assert "test_it.py::test_first left CUDA unusable in this process" in done.stdout
    assert "-n 8" in done.stdout


@pytest.mark.parametrize("error", ["CUDA error: out of memory", "out of resource: shared memory"])
@pytest.mark.slow
def test_other_errors_fail_only_their_own_test(tmp_path: Path, error: str) -> None:
    done = run_two_tests(tmp_path, error)
    assert "1 failed, 1 passed" in done.stdout


@pytest.mark.slow
def test_an_xdist_worker_ends_after_a_cuda_error(tmp_path: Path) -> None:
    """pytest-xdist has received the report by then and starts another worker."""
    done = run_two_tests(tmp_path, ILLEGAL_ADDRESS, PYTEST_XDIST_WORKER="gw0")
    assert done.returncode == 1
    assert "passed" not in done.stdout
    assert "Exit" not in done.stdout
