"""Tests of ``fgbench simulate``: run folders, replays of runs, and error messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fgbench.cli.main import app
from fgbench.cli.simulate import _config_of
from fgbench.metrics.accounts import MemoryAccount, analytic_device
from fgbench.report.comparison import compare
from fgbench.report.comparison_data import comparison_json, comparison_rows
from fgbench.report.notes import notes
from fgbench.report.pictures.contents import pictures_of
from fgbench.results.frames import run_row
from fgbench.results.run import find_runs, read_run
from fgbench.workload.build import build_workload
from fgbench.workload.reading import load_dataset
from fgengine.config import EngineConfig
from fgengine.units import percent

DATA = Path(__file__).parents[2] / "data"
PROFILE = str(DATA / "profile.json")


def fgbench(*argv: str) -> Any:
    return CliRunner().invoke(app, list(argv))


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_simulation_saves_its_kv_memory_accounting(tmp_path: Path) -> None:
    """With slow copies and a small pool, sometimes every request of a replica waits for a copy."""
    profile = json.loads(Path(PROFILE).read_text())
    profile["cost"]["copy_bytes_per_second"] = 2e7
    slow = tmp_path / "slow.json"
    slow.write_text(json.dumps(profile))
    argv = ["--num-prompts", "60", "--rate", "6", "--num-device-blocks", "150", "--replicas", "2"]
    runs = tmp_path / "runs"
    done = fgbench("simulate", "--profile", str(slow), *argv, "--results", str(runs))
    assert done.exit_code == 0, done.output
    (run,) = map(read_run, find_runs(runs))
    stats = run.info["server_stats"]
    assert stats["replicas"] == 2
    assert set(stats["before"].values()) == {0.0}
    assert stats["after"]["finished"] == 60
    account = MemoryAccount.of(run.info)
    assert account is not None
    assert account.copy_wait_seconds == pytest.approx(stats["after"]["copy_wait_seconds"] / 2)
    assert account.seconds == pytest.approx(max(r.finished or 0.0 for r in run.records), rel=0.01)
    assert 0.01 < account.copy_wait_share < 1.0
    shown = " ".join(done.output.split())
    assert "KV memory mean of 2 replicas: " in shown
    assert f"device idle for copies {percent(account.copy_wait_share)} of the time" in shown


def test_a_replayed_simulation_has_the_same_figures(tmp_path: Path) -> None:
    argv = ["--num-prompts", "30", "--rate", "2", "--results", str(tmp_path), "--max-batch-size", "8"]
    assert fgbench("simulate", "--profile", PROFILE, *argv).exit_code == 0
    (folder,) = find_runs(tmp_path)
    done = fgbench("simulate", "--profile", PROFILE, "--like", str(folder), "--json")
    figures = {figure["name"]: figure for figure in json.loads(done.output)["figures"]}
    assert figures["mean JCT"]["ratio"] == pytest.approx(1.0, rel=1e-6)
    assert figures["mean TTFT"]["measured"] > 0.0


def test_a_replay_uses_the_pool_sizes_that_the_server_chose() -> None:
    stats = {"num_device_blocks": 1234, "num_host_blocks": 5678, "block_bytes": 368_640}
    info = {"server_stats": {"before": {}, "after": stats}}
    settings = {"policy": "fcfs", "max_batch_size": 16, "num_device_blocks": None, "swap_space": None}

    def replayed(**changed: object) -> EngineConfig:
        backend = {"settings": settings | changed}
        return _config_of(info | {"backend": backend}, Path())

    found = replayed()
    assert found.num_device_blocks == 1234
    assert (found.swap_space_bytes or 0) // 368_640 == 5678
    by_hand = replayed(num_device_blocks=9, swap_space=2.0)
    assert (by_hand.num_device_blocks, by_hand.swap_space_bytes) == (9, 2 * 2**30)
    info = {}
    assert replayed().swap_space_bytes is None


@pytest.mark.parametrize(
    "replayed", [DATA / "fastgen-of-november", DATA / "fcfs-of-november"], ids=lambda path: path.name
)
def test_runs_from_before_the_pool_was_sized_by_memory_can_be_replayed(replayed: Path) -> None:
    assert read_run(replayed).info["backend"]["settings"]["swap_space"] == 2.0
    done = fgbench("simulate", "--profile", PROFILE, "--like", str(replayed), "--json")
    assert done.exit_code == 0, done.output


def test_a_simulation_prints_its_pool_sizes(tmp_path: Path) -> None:
    argv = ["--num-prompts", "3", "--results", str(tmp_path)]
    done = fgbench("simulate", "--profile", PROFILE, *argv)
    assert "host pool 8 GiB = 23,300 blocks (372,800 tokens, about 728 requests of 512 tokens)" in done.output
    assert "assumed: memory enough for the default pools" in done.output


def test_requests_that_never_fit_are_counted_as_errors(tmp_path: Path) -> None:
    argv = ["--num-device-blocks", "10", "--num-prompts", "30", "--results", str(tmp_path)]
    done = fgbench("simulate", "--profile", PROFILE, *argv)
    assert done.exit_code == 3
    (run,) = map(read_run, find_runs(tmp_path))
    assert run.complete
    assert any((r.error or "").startswith("refused: ") for r in run.records)
    assert any(r.ok for r in run.records)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--router", "random"], "there is no router 'random'"),
        (["--replicas", "0"], "--replicas must be between"),
        (["--model", "opt-125m"], "the profile is of another model"),
        (["--json"], "--json needs --like"),
        (["--device", "cuda"], "is not the device cuda"),
    ],
)
def test_a_mistake_is_reported_in_one_sentence(tmp_path: Path, argv: list[str], message: str) -> None:
    done = fgbench("simulate", "--profile", PROFILE, "--results", str(tmp_path), *argv)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not find_runs(tmp_path)


def test_without_a_profile_the_message_shows_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path / "cache"))
    done = fgbench("simulate", "--results", str(tmp_path))
    assert done.exit_code == 2
    assert "measure one with 'fgbench profile'" in done.stderr


def test_like_takes_only_a_profile_and_needs_a_run_of_fastgen(tmp_path: Path) -> None:
    folder = DATA / "fastgen-of-november"
    done = fgbench("simulate", "--profile", PROFILE, "--like", str(folder), "--rate", "3")
    assert done.exit_code == 2
    assert "--rate does not work with --like" in done.stderr
    done = fgbench("simulate", "--profile", PROFILE, "--like", str(DATA / "vllm-of-november"))
    assert done.exit_code == 2
    assert "give --like a run of fastgen" in done.stderr


@pytest.mark.slow
def test_requests_are_divided_between_users(tmp_path: Path) -> None:
    argv = ["--profile", PROFILE, "--num-prompts", "40", "--results", str(tmp_path), "--users", "3"]
    assert fgbench("simulate", *argv).exit_code == 0
    assert fgbench("run", "--backend", "simulated-vtc", *argv).exit_code == 0
    for run in map(read_run, find_runs(tmp_path)):
        assert run.info["workload"]["users"] == 3
        assert {record.user for record in run.records} == {"user-1", "user-2", "user-3"}
    done = fgbench("simulate", "--profile", PROFILE, "--users", "0", "--results", str(tmp_path / "none"))
    assert done.exit_code == 2
    assert "the number of users must be between 1 and" in done.stderr


ARRIVALS = {
    "gamma cv=3.0": ["--cv", "3"],
    "uniform": ["--arrivals", "uniform"],
    "burst size=5": ["--burst-size", "5"],
    "ramp rate_to=4.0": ["--rate-to", "4", "--rate", "1"],
    "closed concurrency=4": ["--concurrency", "4"],
}


@pytest.mark.parametrize("label", ARRIVALS)
@pytest.mark.slow
def test_every_arrival_process_can_be_simulated(tmp_path: Path, label: str) -> None:
    argv = ["--profile", PROFILE, "--num-prompts", "40", "--results", str(tmp_path), *ARRIVALS[label]]
    done = fgbench("simulate", *argv)
    assert done.exit_code == 0, done.output
    (run,) = map(read_run, find_runs(tmp_path))
    assert run.info["workload"]["arrivals"] == label
    assert run.info["summary"]["ok"] == 40
    assert not run.info["summary"]["overloaded"] or label != "closed concurrency=4"


def test_a_closed_loop_sends_when_an_answer_ends(tmp_path: Path) -> None:
    argv = ["--profile", PROFILE, "--num-prompts", "60", "--results", str(tmp_path), "--concurrency", "4"]
    done = fgbench("simulate", *argv)
    assert done.exit_code == 0, done.output
    assert "closed loop of 4" in done.output
    (run,) = map(read_run, find_runs(tmp_path))
    assert "_c4_s0" in run.path.name
    records = sorted(run.records, key=lambda record: record.index)
    assert [record.scheduled for record in records[:4]] == [0.0] * 4
    ends = sorted(record.finished or 0.0 for record in records)
    assert [record.scheduled for record in records[4:]] == pytest.approx(ends[:-4], abs=2e-6)
    for record in records:
        in_flight = sum(
            other.scheduled <= record.scheduled < (other.finished or 0.0) - 2e-6 for other in records
        )
        assert in_flight <= 4
        accounted = sum((record.server or {})[state] for state in ("queued", "swapped", "prefill", "decode"))
        assert accounted == pytest.approx((record.finished or 0.0) - record.scheduled, abs=2e-6)
    assert run.info["summary"]["offered_rate"] is None
    assert "offered" not in done.output


def test_a_trace_gives_times_and_lengths(tmp_path: Path) -> None:
    trace = tmp_path / "mine.csv"
    rows = "".join(f"{i * 0.5},{i + 10},{i + 5}\n" for i in range(30))
    trace.write_text("timestamp,prompt_tokens,output_tokens\n" + rows + "oops,1\n")
    argv = ["--profile", PROFILE, "--trace", str(trace)]
    done = fgbench("simulate", *argv, "--speedup", "2", "--limit", "20", "--results", str(tmp_path / "a"))
    assert done.exit_code == 0, done.output
    (run,) = map(read_run, find_runs(tmp_path / "a"))
    records = sorted(run.records, key=lambda record: record.index)
    assert [r.scheduled for r in records] == pytest.approx([i * 0.25 for i in range(20)], abs=2e-6)
    assert [(r.prompt_tokens, r.asked_tokens) for r in records] == [(i + 10, i + 5) for i in range(20)]
    assert run.info["workload"]["rate"] == pytest.approx(4.0)
    assert run.info["workload"]["dataset"] == "mine"

    named = ["--dataset", "synthetic", "--input-len", "9", "--output-len", "3", "--num-prompts", "5"]
    done = fgbench("simulate", *argv, *named, "--results", str(tmp_path / "b"))
    assert done.exit_code == 0, done.output
    assert "mine.csv: 30 complete records; 1 record is broken" in done.output.replace("\n", " ")
    (run,) = map(read_run, find_runs(tmp_path / "b"))
    records = sorted(run.records, key=lambda record: record.index)
    assert [r.scheduled for r in records] == pytest.approx([i * 0.5 for i in range(5)], abs=2e-6)
    assert {(r.prompt_tokens, r.asked_tokens) for r in records} == {(9, 3)}
    done = fgbench("simulate", *argv, "--num-prompts", "31", "--results", str(tmp_path / "c"))
    assert done.exit_code == 2
    assert "has 30 requests, fewer than 31: lower --num-prompts" in done.stderr


@pytest.mark.parametrize("load", [["--rate", "4"], ["--concurrency", "4"]])
def test_a_simulation_stops_sending_after_the_duration(tmp_path: Path, load: list[str]) -> None:
    argv = ["--profile", PROFILE, "--num-prompts", "300", "--results", str(tmp_path), *load]
    done = fgbench("simulate", *argv, "--duration", "20", "--trim", "10%")
    assert done.exit_code == 0, done.output
    (run,) = map(read_run, find_runs(tmp_path))
    assert 4 < len(run.records) < 300
    assert max(record.scheduled for record in run.records) < 20.0
    assert max(record.finished or 0.0 for record in run.records) > 20.0  # requests in flight are completed
    assert run.info["summary"]["trimmed"] > 0
    assert "left out" in done.output


def test_a_full_queue_rejects_requests_with_429(tmp_path: Path) -> None:
    argv = ["--num-prompts", "200", "--rate", "10", "--results", str(tmp_path), "--policy", "fcfs"]
    done = fgbench("simulate", "--profile", PROFILE, *argv, "--max-queue", "20")
    assert done.exit_code == 0, done.output
    assert "rejected" in done.output
    (run,) = map(read_run, find_runs(tmp_path))
    rejected = [record for record in run.records if record.rejected]
    assert 100 < len(rejected) == run.info["summary"]["rejected"] < 200
    assert run.info["summary"]["failed"] == 0
    assert run.info["summary"]["overloaded"]
    assert run.info["backend"]["settings"]["max_queue"] == 20
    for record in rejected:
        assert record.rejected is not None
        assert record.rejected.startswith("http 429: the queue is full: 20 requests wait")
        assert (record.error, record.output_tokens, record.first_token) == (None, 0, None)
        assert record.finished is not None
        assert record.finished >= record.sent


def test_requests_that_wait_too_long_are_dropped(tmp_path: Path) -> None:
    argv = ["--num-prompts", "150", "--rate", "10", "--results", str(tmp_path), "--policy", "fcfs"]
    done = fgbench("simulate", "--profile", PROFILE, *argv, "--queue-timeout", "5", "--max-queue", "0")
    assert done.exit_code == 0, done.output
    (run,) = map(read_run, find_runs(tmp_path))
    rejected = [record for record in run.records if record.rejected]
    assert len(rejected) > 30
    assert run.info["summary"]["rejections"] == {"queue timeout": len(rejected)}
    assert all(5.0 <= (record.finished or 0.0) - record.sent < 7.0 for record in rejected)
    assert all((r.first_token or 0.0) - r.sent < 7.0 for r in run.records if r.ok)


@pytest.mark.parametrize("policy", ["fcfs", "sj-mlfq"])
@pytest.mark.parametrize("load", [["--rate", "1.93", "--num-prompts", "150"], ["--rate", "inf"]])
@pytest.mark.slow
def test_the_default_queue_rejects_nothing_in_the_runs_of_the_readme(
    tmp_path: Path, policy: str, load: list[str]
) -> None:
    """150 prompts at 1.3 times the capacity, and the default number of prompts all at once."""
    argv = ["--profile", PROFILE, *load, "--policy", policy, "--results", str(tmp_path)]
    assert fgbench("simulate", *argv).exit_code == 0
    (run,) = map(read_run, find_runs(tmp_path))
    assert run.info["summary"]["rejected"] == 0


@pytest.mark.parametrize("policy", ["fcfs", "sj-mlfq"])
@pytest.mark.slow
def test_in_overload_the_default_queue_limits_the_wait(tmp_path: Path, policy: str) -> None:
    """The load is three times the capacity. The default queue holds about a minute of typical requests."""
    argv = ["--num-prompts", "1200", "--rate", "5", "--results", str(tmp_path), "--policy", policy]
    assert fgbench("simulate", "--profile", PROFILE, *argv).exit_code == 0
    (run,) = map(read_run, find_runs(tmp_path))
    served = [record for record in run.records if record.ok]
    assert run.info["summary"]["failed"] == 0
    assert 0.4 < run.info["summary"]["rejected"] / 1200 < 0.8
    waits = {record.index: (record.first_token or 0.0) - record.scheduled for record in served}
    assert max(waits.values()) < 100.0


@pytest.mark.slow
def test_a_run_older_than_the_queue_limit_is_replayed_without_it(tmp_path: Path) -> None:
    argv = ["--num-prompts", "150", "--rate", "30", "--results", str(tmp_path), "--policy", "fcfs"]
    assert fgbench("simulate", "--profile", PROFILE, *argv, "--max-queue", "0").exit_code == 0
    (folder,) = find_runs(tmp_path)
    info = json.loads((folder / "run.json").read_text())
    for name in ("max_queue", "max_queue_tokens", "queue_timeout"):
        del info["backend"]["settings"][name]
    (folder / "run.json").write_text(json.dumps(info))
    done = fgbench("simulate", "--profile", PROFILE, "--like", str(folder), "--json")
    figures = {figure["name"]: figure for figure in json.loads(done.output)["figures"]}
    assert figures["mean JCT"]["ratio"] == pytest.approx(1.0, rel=1e-6)
    assert figures["output tokens / s"]["ratio"] == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("verb", ["simulate", "run"])
def test_a_policy_that_breaks_its_contract_is_reported_in_one_sentence(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backwards_policy.py").write_text(
        "from fgengine.scheduling.fcfs import FCFS\n"
        "class Backwards(FCFS):\n"
        "    def order(self, now):\n"
        "        return reversed(list(super().order(now)))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    argv = ["--profile", PROFILE, "--num-prompts", "40", "--rate", "9", "--results", str(tmp_path / "runs")]
    if verb == "run":
        argv += ["--backend", "simulated-backwards_policy:Backwards"]
    else:
        argv += ["--policy", "backwards_policy:Backwards"]
    done = fgbench(verb, *argv)
    assert done.exit_code == 1
    message = "fgbench: the policy 'backwards_policy:Backwards' cannot be used: its order gives request"
    assert message in done.output
    assert "Traceback" not in done.output
    (folder,) = find_runs(tmp_path / "runs")
    assert read_run(folder).info["status"] == "failed"


@pytest.mark.slow
def test_a_device_that_is_not_here_is_simulated_and_marked_everywhere(tmp_path: Path) -> None:
    argv = ["--num-prompts", "12", "--rate", "2", "--results", str(tmp_path)]
    device = ["--device-spec", "a100-40gb", "--model", "opt-13b"]
    done = fgbench("simulate", *device, *argv)
    assert done.exit_code == 0, done.output
    assert "computed from published figures (NVIDIA A100" in done.output
    assert "an analytic device (a100-40gb)" in " ".join(done.output.split())
    (run,) = map(read_run, find_runs(tmp_path))
    assert run.info["backend"]["settings"]["analytic_device"] == "a100-40gb"
    assert run.info["backend"]["settings"]["profile"] == "a100-40gb, float16, analytic"
    listed = fgbench("results", "list", "--results", str(tmp_path))
    assert "ƒ an analytic device" in listed.output
    compared = fgbench("compare", "--results", str(tmp_path))
    assert "ƒ" in compared.output
    comparison, *_ = compare([run])
    assert any(note.text.startswith("ƒ an analytic device (a100-40gb)") for note in notes(comparison))
    assert {row["analytic_device"] for row in comparison_rows(comparison, [])} == {"a100-40gb"}
    assert [point["analytic_device"] for point in comparison_json(comparison, [])["points"]] == ["a100-40gb"]
    assert run_row(run.path, run.info)["analytic_device"] == "a100-40gb"
    pictures = pictures_of(comparison, [])
    assert pictures
    for picture in pictures:
        assert any(note.startswith("an analytic device") and "(a100-40gb)" in note for note in picture.notes)


def test_the_file_of_an_analytic_profile_simulates_the_same_device(tmp_path: Path) -> None:
    profile = tmp_path / "a100.json"
    written = fgbench("profile", "--device-spec", "a100-40gb", "--model", "opt-13b", "--out", str(profile))
    assert written.exit_code == 0, written.output
    argv = ["--model", "opt-13b", "--num-prompts", "12", "--rate", "2", "--results", str(tmp_path / "runs")]
    for device in (
        ["--device-spec", "a100-40gb"],
        ["--profile", str(profile)],
        ["--device-spec", str(profile)],
    ):
        done = fgbench("simulate", *device, *argv)
        assert done.exit_code == 0, done.output
    runs = list(map(read_run, find_runs(tmp_path / "runs")))
    assert {analytic_device(run.info) for run in runs} == {"a100-40gb"}
    assert runs[0].records == runs[1].records == runs[2].records


def test_a_slower_step_makes_every_request_slower(tmp_path: Path) -> None:
    argv = ["--model", "opt-13b", "--device-spec", "a100-40gb", "--num-prompts", "12", "--rate", "2"]
    means = []
    for name, overhead in (("default", ()), ("slow", ("--step-overhead-ms", "8.5"))):
        done = fgbench("simulate", *argv, *overhead, "--results", str(tmp_path / name))
        assert done.exit_code == 0, done.output
        (run,) = map(read_run, find_runs(tmp_path / name))
        means.append(run.info["summary"]["tpot"]["mean"])
    assert means[1] - means[0] > 0.006
    assert run.info["backend"]["settings"]["profile"].endswith("analytic, 8.5 ms per step")


@pytest.mark.slow
def test_a_measured_run_has_no_mark(tmp_path: Path) -> None:
    argv = ["--profile", PROFILE, "--num-prompts", "5", "--rate", "1.5", "--results", str(tmp_path)]
    done = fgbench("simulate", *argv)
    assert "ƒ" not in done.output
    assert "ƒ" not in fgbench("compare", "--results", str(tmp_path)).output
