"""``make`` sets up .venv: the index that torch comes from, the Python version, and the error messages.

A shell script replaces Python. It records how it is called, and creates folders that look like a .venv.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "PYTHON", "TORCH_INDEX")
"""Environment variables that ``make test`` sets; the tests must not pass them on."""

PYTHON = """#!/bin/sh
echo "$*" >>calls
case "$*" in
    *print*) echo VERSION;;
    *"sys.exit(sys.version_info < (3, 10))"*) ;;
    "-m venv --clear .venv")
        rm -rf .venv
        mkdir -p .venv/bin
        cp "$0" .venv/bin/python
        cp "$0" .venv/bin/pythonVERSION;;
    *pip*) case "$*" in *"$FAILING"*) test -z "$FAILING" || exit 1;; esac;;
    *) exit 9;;
esac
"""

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or not hasattr(os, "uname") or os.uname().sysname != "Linux",
    reason="make on Linux",
)


class Checkout:
    """A folder with our Makefile, and fake Pythons of two versions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failing = ""
        """pip fails if its arguments contain this text."""
        self.gpu = False
        for name in ("Makefile", "constraints.txt", "pyproject.toml", "setup.py"):
            shutil.copy(ROOT / name, folder)
        (folder / "bin").mkdir()
        for name, version in [("python3", "3.11"), ("python3.11", "3.11"), ("python3.12", "3.12")]:
            self._program(name, PYTHON.replace("VERSION", version))

    def make(self, *variables: str) -> subprocess.CompletedProcess[str]:
        self._program("nvidia-smi", f"#!/bin/sh\nexit {int(not self.gpu)}\n")
        (self.folder / "calls").write_text("")
        env = {key: value for key, value in os.environ.items() if key not in OF_MAKE}
        env |= {"PATH": f"{self.folder / 'bin'}:{env['PATH']}", "FAILING": self.failing}
        return subprocess.run(
            ["make", ".venv/installed", "NVIDIA_DEVICE=/no/such/device", *variables],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )

    def installs(self) -> list[str]:
        """Return the arguments of ``pip install`` in the last ``make``."""
        calls = (self.folder / "calls").read_text().splitlines()
        return [call.partition(" install ")[2] for call in calls if "-m pip" in call]

    def _program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_without_a_gpu_torch_comes_from_the_index_of_cpu_builds(checkout: Checkout) -> None:
    done = checkout.make()
    assert done.returncode == 0, done.stderr
    torch, rest = checkout.installs()
    assert torch.startswith("--no-deps torch==")
    assert f"--index-url {CPU_INDEX}" in torch
    assert "--retries 0" in torch
    assert rest == "--quiet -c constraints.txt -e .[dev]"
    assert "CPU build" in done.stdout
    assert "GB" not in done.stdout
    checkout.make()
    assert checkout.installs() == []


def test_without_that_index_the_size_of_the_other_build_is_shown(checkout: Checkout) -> None:
    checkout.failing = CPU_INDEX
    done = checkout.make()
    assert done.returncode == 0, done.stderr
    assert len(checkout.installs()) == 2
    assert "build for CUDA, a 1.6 GB download that takes 5 GB of disk" in done.stdout


def test_with_a_gpu_torch_comes_from_the_usual_index(checkout: Checkout) -> None:
    checkout.gpu = True
    assert checkout.make().returncode == 0
    assert checkout.installs() == ["--quiet -c constraints.txt -e .[dev]"]


@pytest.mark.parametrize("gpu", [False, True])
def test_torch_index_selects_the_index(checkout: Checkout, gpu: bool) -> None:
    checkout.gpu = gpu
    assert checkout.make("TORCH_INDEX=http://h/whl").returncode == 0
    torch, _ = checkout.installs()
    assert "--index-url http://h/whl" in torch
    (checkout.folder / ".venv" / "installed").unlink()
    assert checkout.make("TORCH_INDEX=").returncode == 0
    assert len(checkout.installs()) == 1


@pytest.mark.parametrize(
    ("failing", "variables", "message"),
    [
        ("constraints.txt", [], "try 'make clean' and a Python between 3.10 and 3.13"),
        ("http://h/whl", ["TORCH_INDEX=http://h/whl"], "no fitting torch at http://h/whl: check TORCH_INDEX"),
        ("", ["PYTHON=no-such-python"], "'no-such-python' is not Python 3.10 or newer"),
    ],
)
def test_a_failure_says_what_to_try(
    checkout: Checkout, failing: str, variables: list[str], message: str
) -> None:
    checkout.failing = failing
    done = checkout.make(*variables)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (checkout.folder / ".venv" / "installed").exists()


def test_another_python_recreates_the_venv(checkout: Checkout) -> None:
    venv = checkout.folder / ".venv"
    checkout.make("PYTHON=python3.12")
    assert (venv / "bin" / "python3.12").exists()
    checkout.make()  # python3 is 3.11, but PYTHON does not select it
    assert checkout.installs() == []
    done = checkout.make("PYTHON=python3.11")
    assert "Making .venv again, with Python 3.11." in done.stdout
    assert len(checkout.installs()) == 2
    assert not (venv / "bin" / "python3.12").exists()
    checkout.make("PYTHON=no-such-python")
    assert (venv / "installed").exists()
