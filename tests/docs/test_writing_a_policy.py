"""The examples of docs/writing-a-policy.md work: the test writes its files and runs its commands."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fgbench.cli.main import app
from fgbench.results.run import find_runs, read_run
from fgengine.scheduling.policy import ENTRY_POINTS, PolicyContext, SortedPolicy

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "writing-a-policy.md").read_text(encoding="utf-8")
PROFILE = Path("results/reference/smollm2-cpu/profile.json")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def commands(verb: str) -> list[list[str]]:
    lines = [shlex.split(line) for block in blocks("") for line in block.splitlines()]
    return [line[1:] for line in lines if line[:2] == ["fgbench", verb]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the page's files (named in their first lines) and the profile that the page uses."""
    for block in (*blocks("python"), *blocks("toml")):
        name = block.partition("\n")[0].removeprefix("# ")
        (tmp_path / name).write_text(block, encoding="utf-8")
    (tmp_path / PROFILE).parent.mkdir(parents=True)
    shutil.copy(ROOT / PROFILE, tmp_path / PROFILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # so that changes of sys.path are undone
    yield tmp_path
    sys.modules.pop("my_policies", None)


@pytest.mark.slow
def test_the_example_test_passes(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_my_policies.py"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.slow
def test_the_simulations_run_and_the_policy_shortens_the_waits(folder: Path) -> None:
    for argv in (*commands("simulate"), *commands("compare")):
        done = CliRunner().invoke(app, argv)
        assert done.exit_code == 0, done.output
    runs = {run.info["backend"]["policy"]: run for run in map(read_run, find_runs(folder / "results"))}
    waits = {
        policy: [r.first_token - r.scheduled for r in run.records if r.asked_tokens <= 64]
        for policy, run in runs.items()
    }
    mine, fcfs = waits["my_policies:InteractiveFirst"], waits["fcfs"]
    assert sum(mine) / len(mine) < 0.5 * sum(fcfs) / len(fcfs)


@pytest.mark.slow
def test_steps_taken_at_once_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's policy fulfils the contract of ``steady_seconds``."""
    argv = commands("simulate")[0]
    assert CliRunner().invoke(app, [*argv, "--results", "advancing"]).exit_code == 0
    mine = importlib.import_module("my_policies").InteractiveFirst
    monkeypatch.setattr(mine, "steady_seconds", lambda policy, running, now: 0.0)
    assert CliRunner().invoke(app, [*argv, "--results", "stepping"]).exit_code == 0
    (advancing,), (stepping,) = find_runs(Path("advancing")), find_runs(Path("stepping"))
    for got, expected in zip(read_run(advancing).records, read_run(stepping).records, strict=True):
        assert got.index == expected.index
        assert got.last_token == pytest.approx(expected.last_token, rel=1e-9)


def test_the_real_engine_accepts_the_same_policy(folder: Path) -> None:
    from fgengine.config import EngineConfig
    from fgengine.scheduling.policy import make_policy

    sys.path.append(str(folder))
    for argv in (*commands("run"), *commands("serve")):
        config = EngineConfig(policy=argv[argv.index("--policy") + 1])
        assert isinstance(config, EngineConfig)
        policy = make_policy(config.policy, PolicyContext())
        assert isinstance(policy, SortedPolicy)
    assert len(commands("run")) == len(commands("serve")) == 1


def test_the_entry_point_is_in_the_group_that_is_searched(folder: Path) -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((name, target),) = project["entry-points"][ENTRY_POINTS].items()
    assert target == commands("run")[0][commands("run")[0].index("--policy") + 1]
    assert f"--policy {name}" in PAGE
