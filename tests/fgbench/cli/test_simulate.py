"""fgbench simulate: run folders that compare reads, a run replayed, and mistakes told in a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fgbench.cli.main import app
from fgbench.results.run import find_runs, read_run
from fgbench.workload.build import build_workload
from fgbench.workload.load import load_dataset

REFERENCE = Path(__file__).parents[3] / "results" / "reference" / "smollm2-cpu"
PROFILE = str(REFERENCE / "profile.json")


def fgbench(*argv: str) -> Any:
    return CliRunner().invoke(app, list(argv))


def test_a_simulated_run_is_a_run_and_repeats_exactly(tmp_path: Path) -> None:
    argv = ["--profile", PROFILE, "--num-prompts", "40", "--rate", "1.5", "--results", str(tmp_path)]
    for command in (["simulate"], ["simulate"], ["run", "--backend", "simulated-fcfs"]):
        done = fgbench(*command, *argv)
        assert done.exit_code == 0, done.output
    first, again, fcfs = sorted(map(read_run, find_runs(tmp_path)), key=lambda run: run.info["started"])
    assert first.complete
    assert first.records == again.records
    assert [run.info["backend"]["name"] for run in (first, fcfs)] == ["simulated", "simulated-fcfs"]
    assert first.fingerprint == again.fingerprint != fcfs.fingerprint
    assert all(len(r.token_times) == r.output_tokens == r.asked_tokens for r in first.records)
    workload = build_workload(load_dataset(), rate=1.5, num_prompts=40, vocab_size=49_152)
    assert first.info["workload"]["fingerprint"] == workload.fingerprint  # as of a real run
    compared = fgbench("compare", "--results", str(tmp_path))
    assert compared.exit_code == 0
    assert "simulated-fcfs" in compared.output


def test_more_replicas_serve_more(tmp_path: Path) -> None:
    means = []
    for replicas in ("1", "4"):
        folder = tmp_path / replicas
        argv = ["--num-prompts", "60", "--rate", "4", "--replicas", replicas, "--results", str(folder)]
        done = fgbench("simulate", "--profile", PROFILE, "--router", "least-loaded", *argv)
        assert done.exit_code == 0, done.output
        (run,) = map(read_run, find_runs(folder))
        assert run.info["backend"]["settings"]["router"] == "least-loaded"
        means.append(run.info["summary"]["jct"]["mean"])
    assert means[1] < 0.7 * means[0]


def test_a_simulation_replayed_is_itself(tmp_path: Path) -> None:
    argv = ["--num-prompts", "30", "--rate", "2", "--results", str(tmp_path), "--max-batch-size", "8"]
    assert fgbench("simulate", "--profile", PROFILE, *argv).exit_code == 0
    (folder,) = find_runs(tmp_path)
    done = fgbench("simulate", "--profile", PROFILE, "--like", str(folder), "--json")
    figures = {figure["name"]: figure for figure in json.loads(done.output)["figures"]}
    assert figures["mean JCT"]["ratio"] == pytest.approx(1.0, rel=1e-6)
    assert figures["mean TTFT"]["measured"] > 0.0


def test_requests_that_never_fit_are_errors_of_the_run(tmp_path: Path) -> None:
    argv = ["--num-device-blocks", "10", "--num-prompts", "30", "--results", str(tmp_path)]
    done = fgbench("simulate", "--profile", PROFILE, *argv)
    assert done.exit_code == 3
    (run,) = map(read_run, find_runs(tmp_path))
    assert run.complete
    assert any((r.error or "").startswith("refused: ") for r in run.records)
    assert any(r.ok for r in run.records)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--router", "random"], "there is no router 'random'"),
        (["--replicas", "0"], "--replicas must be between"),
        (["--model", "opt-125m"], "the profile is of another model"),
        (["--json"], "--json goes with --like"),
        (["--device", "cuda"], "is not the device cuda"),
    ],
)
def test_mistakes_get_a_sentence(tmp_path: Path, argv: list[str], says: str) -> None:
    done = fgbench("simulate", "--profile", PROFILE, "--results", str(tmp_path), *argv)
    assert done.exit_code == 2
    assert says in done.stderr
    assert not find_runs(tmp_path)


def test_without_a_profile_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path / "cache"))
    done = fgbench("simulate", "--results", str(tmp_path))
    assert done.exit_code == 2
    assert "measure one with 'fgbench profile'" in done.stderr


def test_like_takes_nothing_but_a_profile_and_a_run_whose_server_is_known(tmp_path: Path) -> None:
    (folder,) = REFERENCE.glob("*_fastgen_*_r1.1_s0")
    done = fgbench("simulate", "--profile", PROFILE, "--like", str(folder), "--rate", "3")
    assert done.exit_code == 2
    assert "--rate does not go with --like" in done.stderr
    (vllm,) = REFERENCE.glob("*_vllm_*")
    copy = shutil.copytree(vllm, tmp_path / "vllm")
    done = fgbench("simulate", "--profile", PROFILE, "--like", str(copy))
    assert done.exit_code == 2
    assert "needs a run of fastgen" in done.stderr


def test_users_share_the_requests_out(tmp_path: Path) -> None:
    argv = ["--profile", PROFILE, "--num-prompts", "40", "--results", str(tmp_path), "--users", "3"]
    assert fgbench("simulate", *argv).exit_code == 0
    assert fgbench("run", "--backend", "simulated-vtc", *argv).exit_code == 0
    for run in map(read_run, find_runs(tmp_path)):
        assert run.info["workload"]["users"] == 3
        assert {record.user for record in run.records} == {"user-1", "user-2", "user-3"}
    done = fgbench("simulate", "--profile", PROFILE, "--users", "0", "--results", str(tmp_path / "none"))
    assert done.exit_code == 2
    assert "the number of users must be between 1 and" in done.stderr
