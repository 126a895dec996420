"""No process imports files of the working folder (CWE-427), except a policy that the user names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fgengine.child import python_module

NAMES = ("random", "types", "profile", "json", "signal", "torch", "numpy", "accelerate", "fgengine")
"""Modules of the standard library, modules of dependencies, and one that transformers searches for."""
FGBENCH = Path(sys.executable).with_name("fgbench")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a working folder with modules that write a file when they are imported."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(
            f"import pathlib\npathlib.Path({str(tmp_path / name)!r}).with_suffix('.imported').touch()\n"
        )
    return tmp_path


def imported(folder: Path) -> list[str]:
    """Return the names of the folder's modules that were imported."""
    return sorted(path.stem for path in folder.glob("*.imported"))


def test_a_child_does_not_import_from_the_working_folder(folder: Path) -> None:
    done = subprocess.run(
        python_module("json.tool", "--compact"), cwd=folder, input=b'{"a": 1}', capture_output=True
    )
    assert (done.returncode, done.stdout) == (0, b'{"a":1}\n')
    assert imported(folder) == []
    subprocess.run([sys.executable, "-m", "this"], cwd=folder, capture_output=True)
    subprocess.run([sys.executable, "-c", "import random"], cwd=folder, capture_output=True)
    assert imported(folder) == ["random"]  # the modules do write their file


def test_a_run_imports_nothing_from_the_working_folder(folder: Path, tiny_model: Path) -> None:
    argv = ["run", "--backend", "fastgen-sj-mlfq", "--model", str(tiny_model), "--use-dummy-weights"]
    load = ["--device", "cpu", "--dataset", "synthetic", "--input-len", "4", "--output-len", "4"]
    done = subprocess.run(
        [
            str(FGBENCH),
            *argv,
            *load,
            "--num-prompts",
            "3",
            "--rate",
            "inf",
            "--results",
            str(folder / "runs"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode in (0, 4), done.stdout + done.stderr  # 4: a busy machine delayed the client
    assert imported(folder) == []


def test_a_policy_in_the_working_folder_is_found(folder: Path) -> None:
    (folder / "my_policies.py").write_text(
        "from fgengine.scheduling.fcfs import FCFS\n\n\nclass Mine(FCFS):\n    pass\n"
    )
    profile = Path(__file__).parents[1] / "data" / "profile.json"
    argv = ["simulate", "--policy", "my_policies:Mine", "--profile", str(profile), "--num-prompts", "3"]
    done = subprocess.run(
        [str(FGBENCH), *argv, "--results", str(folder / "runs")], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (folder / "runs").glob("*/run.json")
    assert json.loads(run.read_text())["backend"]["policy"] == "my_policies:Mine"
