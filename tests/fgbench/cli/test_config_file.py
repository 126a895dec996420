"""Tests of options in TOML files: --config reads them, every run folder holds one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fgbench.cli.main import app
from fgbench.results.run import find_runs, read_run
from fgbench.spec.files import read_options, write_options

PROFILE = str(Path(__file__).parents[2] / "data" / "profile.json")
LOAD = ["--dataset", "synthetic", "--input-len", "8", "--output-len", "4", "--num-prompts", "6"]


def fgbench(*argv: object) -> str:
    done = CliRunner().invoke(app, [*map(str, argv)])
    assert done.exit_code == 0, done.output
    return done.output


def refused(*argv: object) -> str:
    done = CliRunner().invoke(app, [*map(str, argv)])
    assert done.exit_code == 2
    return done.output + done.stderr


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        f'profile = "{PROFILE}"\npolicy = "fcfs"\nnum_prompts = 5\nrate = 2\ndataset = "synthetic"\n'
        'input-len = "8"\noutput-len = "4"\nchunked-prefill = true\n'
    )
    fgbench("simulate", "--config", file, "--num-prompts", 3, "--results", tmp_path / "runs")
    run = read_run(find_runs(tmp_path / "runs")[0])
    assert len(run.records) == 3
    assert run.info["workload"]["rate"] == 2.0
    settings = run.info["backend"]["settings"]
    assert (settings["policy"], settings["chunked_prefill"]) == ("fcfs", True)


@pytest.mark.parametrize("verb", ["run", "sweep", "simulate", "serve"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max-batch-sise = 3", "has no option max-batch-sise; did you mean max-batch-size?"),
        ("[server]\npolicy = 1", "options must not be in a table: remove the line [server]"),
        ("policy = ", "is not a TOML file"),
        ("max-batch-size = 0", "--max-batch-size must be at least 1, not 0"),
        ('max-batch-size = "many"', "Invalid value for '--max-batch-size'"),
        ('config = "other.toml"', "has no option config"),
    ],
)
def test_a_mistake_in_a_file_is_reported(tmp_path: Path, verb: str, content: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(content)
    assert message in refused(verb, "--config", file)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused("run", "--config", tmp_path / "none.toml")


def test_the_file_of_a_run_repeats_the_run(tmp_path: Path) -> None:
    fgbench(
        *("run", "--backend", "simulated-srpt", "--profile", PROFILE, "--rate", 3, "--seed", 5, *LOAD),
        *("--max-batch-size", 4, "--trim", "10%", "--results", tmp_path / "first"),
    )
    first = find_runs(tmp_path / "first")[0]
    options = read_options(first / "spec.toml")
    assert (options["rate"], options["max-batch-size"], options["policy"]) == (3.0, 4, "srpt")
    assert "results" not in options
    fgbench("run", "--config", first / "spec.toml", "--results", tmp_path / "second")
    second = read_run(find_runs(tmp_path / "second")[0])
    assert second.info["workload"] == read_run(first).info["workload"]
    assert second.fingerprint == read_run(first).fingerprint
    assert second.records == read_run(first).records


def test_the_file_of_a_simulation_repeats_the_simulation(tmp_path: Path) -> None:
    fgbench(
        *("simulate", "--profile", PROFILE, "--replicas", 2, "--router", "least-loaded", *LOAD),
        *("--results", tmp_path / "first"),
    )
    first = find_runs(tmp_path / "first")[0]
    fgbench("simulate", "--config", first / "spec.toml", "--results", tmp_path / "second")
    assert read_run(find_runs(tmp_path / "second")[0]).fingerprint == read_run(first).fingerprint


@pytest.mark.slow
def test_the_file_of_a_sweep_point_repeats_the_point(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    file.write_text(
        f'backend = ["simulated", "simulated-fcfs --max-batch-size 4"]\nrates = [1, inf]\nseeds = 2\n'
        f'profile = "{PROFILE}"\ndataset = "synthetic"\ninput-len = "8"\noutput-len = "4"\n'
        "num-prompts = 5\n"
    )
    fgbench("sweep", "--config", file, "--results", tmp_path / "swept")
    points = find_runs(tmp_path / "swept")
    assert len(points) == 8
    for point in points:
        again = tmp_path / "again" / point.name
        fgbench("run", "--config", point / "spec.toml", "--results", again)
        assert read_run(find_runs(again)[0]).fingerprint == read_run(point).fingerprint


def test_the_file_of_a_closed_loop_repeats_it(tmp_path: Path) -> None:
    fixed = ["--profile", PROFILE, *LOAD, "--duration", "2"]
    fgbench(
        *("sweep", "--backend", "simulated", "--concurrency", "2,3", *fixed, "--results", tmp_path / "swept")
    )
    for point in find_runs(tmp_path / "swept"):
        again = tmp_path / "again" / point.name
        fgbench("run", "--config", point / "spec.toml", "--results", again)
        assert read_run(find_runs(again)[0]).fingerprint == read_run(point).fingerprint


def test_written_options_can_be_read(tmp_path: Path) -> None:
    options = {"rate": float("inf"), "num_prompts": 3, "eager": False, "slo": None, "backend": ("a", "b")}
    write_options(tmp_path / "spec.toml", options)
    read = read_options(tmp_path / "spec.toml")
    assert read == {"rate": float("inf"), "num-prompts": 3, "eager": False, "backend": ["a", "b"]}
    assert json.dumps(sorted(read))


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big.toml").write_text("#" * 1_000_001)
    with pytest.raises(ValueError, match="too large"):
        read_options(tmp_path / "big.toml")
