"""The Python API of ``fgbench`` and ``fgengine``: measuring and simulating."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fgbench
import fgengine
from fgbench.results.run import read_run

PROFILE = Path(__file__).parents[1] / "data" / "profile.json"


def test_all_public_names_exist() -> None:
    for package in (fgbench, fgengine):
        assert all(hasattr(package, name) for name in package.__all__)
    assert {"run_benchmark", "simulate", "load_runs", "runs", "compare"} < set(fgbench.__all__)
    assert {"Policy", "SortedPolicy", "PolicyContext", "Request"} < set(fgengine.__all__)


@pytest.mark.slow
def test_simulate_equals_the_run_of_the_command_line(tmp_path: Path) -> None:
    run = fgbench.simulate(
        policy="fcfs", rate=2, num_prompts=20, seed=3, replicas=2, profile=str(PROFILE), results=tmp_path
    )
    assert run.status == "complete"
    assert run.info["backend"]["policy"] == "fcfs"
    assert len(fgbench.load_runs(run.path)) == 20
    command = [sys.executable, "-m", "fgbench", "simulate", "--config", str(run.path / "spec.toml")]
    subprocess.run([*command, "--results", str(tmp_path / "again")], check=True, capture_output=True)
    (again,) = (tmp_path / "again").iterdir()
    assert read_run(again).fingerprint == run.fingerprint


@pytest.mark.slow
def test_run_benchmark_measures_a_server(tmp_path: Path, fake_server: Any) -> None:
    run = fgbench.run_benchmark(
        "other", url=fake_server.url, rate=50, num_prompts=4, warmup=0, results=tmp_path
    )
    assert run.status == "complete"
    assert run.info["backend"]["name"] == "other"
    frame = fgbench.load_runs(tmp_path)
    assert (frame["ok"].sum(), frame["backend"].unique().tolist()) == (4, ["other"])


def test_a_policy_given_explicitly_conflicts_even_if_it_is_the_default() -> None:
    with pytest.raises(ValueError, match="contradict each other"):
        fgbench.run_benchmark("fastgen-fcfs", policy="sj-mlfq")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"polcy": "fcfs"}, TypeError, "there is no option polcy; did you mean policy?"),
        ({"rate": "fast"}, ValueError, "Expected `float | null`, got `str` for rate"),
        ({"max_batch_size": 0}, ValueError, "max_batch_size must be at least 1"),
        ({"policy": "lifo"}, ValueError, "there is no policy 'lifo'"),
        ({"warmup": 3}, TypeError, "there is no option warmup"),  # a simulation has no client
    ],
)
def test_wrong_options_raise_a_clear_error(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        fgbench.simulate(**{"profile": PROFILE, "results": tmp_path, **options})
    assert message in str(raised.value)
    assert not list(tmp_path.iterdir())
