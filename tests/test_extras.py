"""What works without the optional packages, and the error message of a missing one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fgengine.extras import EXTRA_OF

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROFILE = ROOT / "tests" / "data" / "profile.json"
RUNS = ROOT / "tests" / "data" / "runs"
HIDE = f"""
import importlib.abc, importlib.util, sys

HIDDEN = set({sorted(EXTRA_OF)!r})

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in HIDDEN else found(name, package)
sys.meta_path.insert(0, Hide())
"""
"""Code that hides all optional packages, as in an environment installed without extras."""


@pytest.fixture(scope="module")
def without_extras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment variables of a Python process without optional packages."""
    folder = tmp_path_factory.mktemp("hide")
    (folder / "sitecustomize.py").write_text(HIDE)
    paths = (str(folder), str(ROOT), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def fgbench(environment: dict[str, str], *argv: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fgbench", *map(str, argv)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)


def test_every_package_of_the_extras_is_in_extra_of() -> None:
    imported = {"scikit-learn": "sklearn"}
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    expected = {}
    for extra in ("engine", "plots", "sql"):
        for requirement in extras[extra]:
            name = requirement.partition(">")[0]
            expected[imported.get(name, name)] = extra
    assert expected == EXTRA_OF


@pytest.mark.slow
def test_a_sweep_can_be_simulated_and_compared_without_any_extra(
    without_extras: dict[str, str], tmp_path: Path
) -> None:
    backends = ("--backend", "simulated", "--backend", "simulated-fcfs")
    load = ("--rates", "2", "--seeds", 3, "--num-prompts", 12, "--results", tmp_path)
    done = fgbench(without_extras, "sweep", *backends, *load, "--profile", PROFILE)
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep,) = tmp_path.glob("*_sweep")
    done = fgbench(without_extras, "compare", sweep, "--out", tmp_path / "pictures")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not distinguishable" in done.stdout  # verdicts over three seeds
    assert "No pictures" in done.stdout
    assert "pip install 'fgbench[plots]'" in done.stdout
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    ("argv", "package", "extra"),
    [
        (("serve", "--use-dummy-weights"), "aiohttp", "engine"),
        (("run", "--use-dummy-weights"), "torch", "engine"),
        (("demo",), "torch", "engine"),
        (("profile",), "torch", "engine"),
        (("models", "pull", "opt-125m"), "gguf", "engine"),
        (("results", "sql"), "duckdb", "sql"),
    ],
)
@pytest.mark.slow
def test_a_missing_package_gives_a_one_line_error_with_the_install_command(
    without_extras: dict[str, str], tmp_path: Path, argv: tuple[str, ...], package: str, extra: str
) -> None:
    done = fgbench({**without_extras, "FGBENCH_CACHE": str(tmp_path)}, *argv)
    assert done.returncode == 1
    assert done.stderr.endswith(f" needs {package}, which is not installed: pip install 'fgbench[{extra}]'\n")
    assert done.stderr.count("\n") == 1


def test_importing_fgengine_and_fgbench_needs_no_extra(without_extras: dict[str, str]) -> None:
    code = "import fgengine, fgbench; fgbench.load_runs, fgbench.runs, fgbench.compare"
    done = subprocess.run([sys.executable, "-c", code], env=without_extras, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
