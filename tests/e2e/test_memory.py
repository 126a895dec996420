"""A model that does not fit is refused in one sentence. The test's processes see 3 GiB free of 4 GiB."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SHORT_OF_MEMORY = """
import psutil
found = psutil.virtual_memory()._replace(available=3 * 1024**3, total=4 * 1024**3)
psutil.virtual_memory = lambda: found
"""
"""Python imports the module sitecustomize at the start of every process."""


@pytest.fixture
def environment(tmp_path: Path, new_cache: Path) -> dict[str, str]:
    (tmp_path / "sitecustomize.py").write_text(SHORT_OF_MEMORY)
    search = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    return {
        **os.environ,
        "PYTHONPATH": search,
        "FGBENCH_CACHE": str(new_cache),
        "HF_HUB_OFFLINE": "1",
    }


def fgbench(environment: dict[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fgbench", *argv], env=environment, capture_output=True, text=True, timeout=120
    )


ON_CPU = ("--device", "cpu", "--dtype", "bfloat16")


def test_serve_refuses_a_model_that_does_not_fit(environment: dict[str, str]) -> None:
    done = fgbench(environment, "serve", "--model", "opt-13b", "--use-dummy-weights", *ON_CPU, "--port", "0")
    assert done.returncode == 1
    last = done.stdout.splitlines()[-1]
    assert last.startswith(
        "fgbench serve: the engine could not start: opt-13b does not fit into memory: it needs 25."
    )
    assert "3 GiB of the machine's 4 GiB are free" in last
    assert last.endswith("the largest of the catalog that fits is tinyllama-1.1b (2.38 GiB)")
    assert "Traceback" not in done.stdout + done.stderr


def test_serve_refuses_it_before_weights_are_downloaded(environment: dict[str, str]) -> None:
    done = fgbench(environment, "serve", "--model", "opt-13b", *ON_CPU, "--port", "0")
    assert done.returncode == 1
    assert "opt-13b does not fit into memory" in done.stdout
    assert "models pull" not in done.stdout
    done = fgbench(environment, "serve", "--model", "opt-125m", *ON_CPU, "--port", "0")
    assert done.returncode == 1
    assert "models pull opt-125m" in done.stdout


def test_profile_refuses_it_too(environment: dict[str, str]) -> None:
    done = fgbench(environment, "profile", "--model", "opt-13b", "--use-dummy-weights", *ON_CPU)
    assert done.returncode == 2
    output = " ".join((done.stdout + done.stderr).split())
    assert "opt-13b does not fit into memory" in output
    assert "Traceback" not in output


def test_serve_refuses_given_pool_sizes_that_do_not_fit(
    environment: dict[str, str], tiny_model: Path
) -> None:
    argv = ["serve", "--model", str(tiny_model), "--use-dummy-weights", *ON_CPU, "--port", "0"]
    done = fgbench(environment, *argv, "--swap-space", "5")
    assert done.returncode == 1
    assert re.search(r"swap_space takes 5 GiB, but .* 3 GiB are free .* lower swap_space to 2\.", done.stdout)


def test_run_refuses_it_before_weights_are_downloaded(environment: dict[str, str], tmp_path: Path) -> None:
    results = str(tmp_path / "results")
    done = fgbench(environment, "run", "--model", "opt-13b", *ON_CPU, "--rate", "1", "--results", results)
    assert done.returncode == 2
    output = " ".join((done.stdout + done.stderr).split())
    assert "opt-13b does not fit into memory" in output
    assert "downloading" not in output
    assert "Traceback" not in output
