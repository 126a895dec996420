"""Tests of ``fgbench sweep``: its points, resuming, error messages, and the highest rate at an SLO."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from command_line import fgbench, words

from fgbench.cli.backend_option import backend_specs
from fgbench.results.run import find_runs, read_run
from fgbench.spec.client import ClientSpec
from fgbench.spec.load import LoadSpec
from fgbench.spec.sweep import Settings, SweepSpec
from fgbench.sweeping.folder import find_sweeps, read_sweep
from fgbench.sweeping.prepared import prepare
from fgengine.config import EngineConfig

PROFILE = str(Path(__file__).parents[2] / "data" / "profile.json")
SHORT = ["--dataset", "synthetic", "--input-len", "20-200", "--output-len", "10-80", "--num-prompts", "20"]
SIMULATED = ["--profile", PROFILE, "--max-batch-size", "8", *SHORT, "--backend", "simulated"]
TWO = [*SIMULATED, "--backend", "simulated-fcfs", "--rates", "1,4"]
TINY = ["--dataset", "synthetic", "--input-len", "4", "--output-len", "3", "--num-prompts", "4"]


def only_sweep(root: Path) -> Path:
    (path,) = find_sweeps(root)
    return path


@pytest.mark.slow
def test_every_backend_at_every_rate_and_seed(tmp_path: Path) -> None:
    done = fgbench("sweep", *TWO, "--seeds", 2, "--seed", 5, "--results", tmp_path)
    assert done.exit_code == 0, done.output
    folder = only_sweep(tmp_path)
    runs = [read_run(path) for path in find_runs(folder)]
    points = [
        (run.info["backend"]["name"], run.info["workload"]["rate"], run.info["workload"]["seed"])
        for run in runs
    ]
    grid = [
        (name, rate, s) for name in ("simulated", "simulated-fcfs") for rate in (1.0, 4.0) for s in (5, 6)
    ]
    assert sorted(points) == sorted(grid)
    assert all(run.complete and len(run.records) == 20 for run in runs)
    assert f"fgbench compare {folder}" in words(done.output)
    assert "point 8 of 8: simulated-fcfs, 4/s, seed 6" in words(done.output)
    info = read_sweep(folder)
    assert info["status"] == "complete"
    assert {point["run"] for point in info["points"]} == {run.path.name for run in runs}


def test_a_resumed_sweep_repeats_no_finished_run(tmp_path: Path) -> None:
    assert fgbench("sweep", *TWO, "--results", tmp_path).exit_code == 0
    folder = only_sweep(tmp_path)
    removed, *remaining = find_runs(folder)
    shutil.rmtree(removed)
    for argv in (["--resume", folder], ["--resume", *TWO, "--results", tmp_path]):
        done = fgbench("sweep", *argv)
        assert done.exit_code == 0, done.output
        assert len(find_runs(folder)) == len(remaining) + 1
    assert find_sweeps(tmp_path) == [folder]
    assert set(remaining) < set(find_runs(folder))
    assert "point" not in done.output  # the second time there was nothing to do
    assert done.output.count(" complete ") == 4  # but the results are shown


def test_a_sweep_is_resumed_only_with_its_own_settings(tmp_path: Path) -> None:
    assert fgbench("sweep", *TWO, "--results", tmp_path).exit_code == 0
    folder = only_sweep(tmp_path)
    before = (folder / "sweep.json").read_text()
    other = fgbench("sweep", "--resume", folder, "--rates", "1,4,8", "--max-batch-size", 16)
    assert other.exit_code == 2
    assert "--max-batch-size is 8 there and 16 now" in other.stderr
    assert "--rates is 1,4 there and 1,4,8 now" in other.stderr
    newest = fgbench("sweep", "--resume", *TWO, "--seeds", 2, "--results", tmp_path)
    assert newest.exit_code == 2
    assert f"{folder}: the sweep has other settings (--seeds is 1 there and 2 now)" in newest.stderr
    same = fgbench("sweep", "--resume", folder, "--rates", "1.0,4", "--max-error-rate", 0.5, "--fail-fast")
    assert same.exit_code == 0, same.output
    assert fgbench("sweep", "--resume", "--results", tmp_path).exit_code == 0  # the newest of all
    assert json.loads(before)["points"] == read_sweep(folder)["points"]
    fewer = fgbench("sweep", "--resume", "--results", tmp_path, *SIMULATED, "--rates", "1,4")
    assert fewer.exit_code == 2
    assert "--backend is simulated,simulated-fcfs there and simulated now" in fewer.stderr


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    table, profile = tmp_path / "lengths.csv", tmp_path / "profile.json"
    table.write_text("prompt_tokens,output_tokens\n40,5\n60,9\n")
    shutil.copy(PROFILE, profile)
    argv = ["--backend", "simulated", "--profile", profile, "--dataset", table, "--num-prompts", 5]
    assert fgbench("sweep", *argv, "--rates", 1, "--results", tmp_path / "r").exit_code == 0
    folder = only_sweep(tmp_path / "r")
    table.write_text("prompt_tokens,output_tokens\n40,5\n60,10\n")
    changed = fgbench("sweep", "--resume", folder)
    assert changed.exit_code == 2
    assert "something else has changed since it started (the requests of the dataset)" in changed.stderr
    table.write_text("prompt_tokens,output_tokens\n40,5\n60,9\n")
    info = json.loads(profile.read_text())
    profile.write_text(json.dumps(info | {"measured": "2026-12-24T00:00:00+00:00"}))
    changed = fgbench("sweep", "--resume", folder)
    assert changed.exit_code == 2
    assert "something else has changed since it started (profile of simulated)" in changed.stderr


def test_options_of_one_backend(tmp_path: Path) -> None:
    argv = [*SIMULATED, "--backend", "simulated --offloading proactive --max-batch-size 4", "--rates", 2]
    done = fgbench("sweep", *argv, "--results", tmp_path)
    assert done.exit_code == 0, done.output
    folder = only_sweep(tmp_path)
    settings = [read_run(path).info["backend"]["settings"] for path in find_runs(folder)]
    chosen = {(s["offloading"], s["max_batch_size"], Path(s["predictor"]).name) for s in settings}
    assert chosen == {("reactive", 8, "learned"), ("proactive", 4, "learned")}
    labels = [point["backend"] for point in read_sweep(folder)["points"]]
    assert labels == ["simulated", "simulated --offloading proactive --max-batch-size 4"]
    assert fgbench("sweep", "--resume", folder).exit_code == 0


def test_a_dry_run_prints_the_points_and_runs_nothing(tmp_path: Path) -> None:
    real = [
        "--profile",
        PROFILE,
        "--max-batch-size",
        "8",
        *SHORT,
        "--backend",
        "fastgen",
        "--rates",
        "0.5,0.1",
    ]
    done = fgbench("sweep", *real, "--dry-run", "--results", tmp_path)
    assert done.exit_code == 0, done.output
    assert not list(tmp_path.iterdir())
    assert "0:40" in done.output  # 20 requests at 0.5/s
    assert "3:20" in done.output
    assert "2 of 2 points to run: about 4:00" in words(done.output)
    assert fgbench("sweep", *TWO, "--results", tmp_path).exit_code == 0
    folder = only_sweep(tmp_path)
    shutil.rmtree(find_runs(folder)[0])
    done = fgbench("sweep", "--resume", folder, "--dry-run")
    assert done.output.count("done: skipped") == 3
    assert "1 of 4 points to run" in words(done.output)
    assert len(find_runs(folder)) == 3


def test_a_duration_has_enough_requests_for_every_rate() -> None:
    settings = Settings(
        sweep=SweepSpec(backend=("simulated",), rates=(1.0, 3000.0, math.inf)),
        load=LoadSpec(duration=4.0, dataset="synthetic", input_len="4", output_len="2"),
        client=ClientSpec(),
        server=EngineConfig(profile=Path(PROFILE)),
    )
    prepared = prepare(settings, backend_specs(settings), lambda line: None)
    for point in prepared.first_points():
        load = prepared.plan.load(point.rate, point.seed)
        assert load.duration == 4.0
        assert load.num_prompts >= 3000 * 4  # the same requests at each rate


@pytest.mark.slow
def test_a_name_given_to_a_backend_is_in_every_result(tmp_path: Path) -> None:
    index = SIMULATED.index("--backend")
    others = [*SIMULATED[:index], *SIMULATED[index + 2 :]]
    named = ["--backend", "new=simulated --max-batch-size 4", "--backend", "old=simulated-fcfs"]
    done = fgbench("sweep", *others, *named, "--rates", "4000", "--seeds", 3, "--results", tmp_path)
    assert done.exit_code == 0, done.output
    folder = only_sweep(tmp_path)
    runs = [read_run(path) for path in find_runs(folder)]
    assert sorted(run.info["backend"]["name"] for run in runs) == ["new"] * 3 + ["old"] * 3
    assert {run.path.name.split("_")[1] for run in runs} == {"new", "old"}
    assert {point["backend"] for point in read_sweep(folder)["points"]} == {"new", "old"}
    compared = fgbench("compare", folder, "--json", "--baseline", "old")
    assert compared.exit_code == 0, compared.output
    rows = json.loads(compared.stdout)
    assert {row["label"] for row in rows["comparisons"][0]["points"]} == {"new", "old"}
    path = next(run.path for run in runs if run.info["backend"]["name"] == "new")
    again = fgbench("run", "--config", path / "spec.toml", "--results", tmp_path / "again")
    assert again.exit_code == 0, again.output
    (repeated,) = find_runs(tmp_path / "again")
    assert read_run(repeated).info["fingerprint"] == read_run(path).info["fingerprint"]


@pytest.mark.slow
def test_closed_loops_instead_of_rates(tmp_path: Path) -> None:
    argv = [*SIMULATED, "--backend", "simulated-fcfs", "--concurrency", "1,4,16", "--results", tmp_path]
    done = fgbench("sweep", *argv, "--dry-run")
    assert "in flight" in done.output
    done = fgbench("sweep", *argv, "--seeds", 2)
    assert done.exit_code == 0, done.output
    assert "simulated-fcfs, 16 in flight, seed 1" in words(done.output)
    folder = only_sweep(tmp_path)
    assert [point["concurrency"] for point in read_sweep(folder)["points"]] == [1, 1, 4, 4, 16, 16] * 2
    assert read_sweep(folder)["order"] == "interleaved"
    shutil.rmtree(next(path for path in find_runs(folder) if "_c4_s1" in path.name))
    again = fgbench("sweep", "--resume", folder)
    assert again.exit_code == 0
    assert "point 1 of 1: " in again.output
    compared = fgbench("compare", folder, "--out", tmp_path / "drawn")
    assert compared.exit_code == 0, compared.output
    assert all(f"{workers} in flight" in compared.output for workers in (1, 4, 16))
    assert compared.output.count("closed-loop arrivals") == 1  # one comparison of them all
    other = fgbench("sweep", "--resume", folder, "--concurrency", "1,4")
    assert other.exit_code == 2
    assert "--concurrency is 1,4,16 there and 1,4 now" in other.stderr
    other = fgbench("sweep", "--resume", folder, "--order", "by-backend")
    assert other.exit_code == 2
    assert "--order is None there and by-backend now" in other.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rates", "1,2", "--concurrency", "1,4"], "--rates and --concurrency exclude each other"),
        (["--concurrency", "4", "--find-rate", "--slo", "ttft<1"], "a closed loop has no rate"),
        (["--rates", "1", "--order", "by-backend"], "--order is for several backends"),
        (["--find-rate", "--slo", "ttft<1", "--order", "by-backend"], "--order does not work with --find"),
        (["--concurrency", "4,x"], "'x' is not a number of requests: write numbers like 1,4,16"),
        (["--concurrency", "0"], "'0' is not a number of requests"),
        (["--concurrency", "4,04"], "04 is given twice"),
        (["--concurrency", "70000"], "--concurrency must be between 1 and 65536"),
        (["--concurrency", "4", "--cv", "2"], "arrivals: leave it out, or use --arrivals"),
        (["--arrivals", "closed", "--rates", "1"], "--arrivals closed needs --concurrency"),
        ([], "or --concurrency, such as 1,4,16"),
    ],
)
def test_wrong_closed_loops_are_an_error(argv: list[str], message: str, tmp_path: Path) -> None:
    done = fgbench("sweep", *SIMULATED, *argv, "--results", tmp_path)
    assert done.exit_code == 2
    assert message in words(done.stderr)
    assert not find_sweeps(tmp_path)


def test_a_sweep_of_another_version_is_not_resumed(tmp_path: Path) -> None:
    """The other version saved its settings in another form."""
    assert fgbench("sweep", *TWO, "--results", tmp_path).exit_code == 0
    file = only_sweep(tmp_path) / "sweep.json"
    info = json.loads(file.read_text())
    info["settings"] = info["settings"]["load"] | {"backend": ["simulated"], "rate": [1.0]}
    file.write_text(json.dumps(info))
    done = fgbench("sweep", "--resume", file.parent)
    assert done.exit_code == 2
    assert f"{file.parent}: not a sweep's settings" in done.stderr
    assert "perhaps another version of fgbench began it" in done.stderr


@pytest.mark.slow
def test_an_unfinished_sweep_with_the_same_options_is_reported(tmp_path: Path) -> None:
    assert fgbench("sweep", *TWO, "--results", tmp_path).exit_code == 0
    first = only_sweep(tmp_path)
    info = read_sweep(first)
    (first / "sweep.json").write_text(json.dumps(info | {"status": "running"}))
    message = f"An unfinished sweep with these options is in {first}"
    assert message in fgbench("sweep", *TWO, "--results", tmp_path).output
    other = fgbench("sweep", *TWO, "--seed", 1, "--results", tmp_path)
    assert message not in other.output


# the highest rate at an SLO


@pytest.mark.slow
def test_the_highest_rate_at_an_slo(tmp_path: Path) -> None:
    argv = [*SIMULATED, "--find-rate", "--slo", "normalized_latency<20ms", "--rates", 1, "--seeds", 2]
    done = fgbench("sweep", *argv, "--results", tmp_path)
    assert done.exit_code == 0, done.output
    folder = only_sweep(tmp_path)
    found = read_sweep(folder)["searches"]["simulated"]
    assert found["met"] < found["rate"] < found["missed"]
    assert (found["missed"] - found["met"]) / 2 <= 0.05 * found["rate"]
    for probe in found["probes"]:
        (figure,) = probe["figures"].values()
        assert (figure <= 0.02 and not probe["overloaded"]) == probe["met"]
        means = [
            run.info["summary"]["normalized_latency"]["mean"]
            for run in map(read_run, find_runs(folder))
            if run.info["workload"]["rate"] == probe["rate"]
        ]
        assert len(means) == 2
        assert figure == pytest.approx(sum(means) / 2)
    message = f"met at {found['met']:.4g}/s, missed at {found['missed']:.4g}/s"
    assert message in words(done.output)
    assert f"{len(found['probes'])} probes" in words(done.output)
    assert "means over 2 seeds" in words(done.output)
    again = fgbench("sweep", "--resume", folder)
    assert again.exit_code == 0
    assert "probe" not in again.output.replace("probes", "")
    assert message in words(again.output)


@pytest.mark.parametrize(
    ("slo", "message"),
    [
        ("jct<1us", ""),
        ("jct<1ms", "still missed at 0.5/s, the lowest rate tried"),
        ("jct<900", "still met at 2/s"),
    ],
)
def test_without_a_met_and_a_missed_rate_there_is_no_result(tmp_path: Path, slo: str, message: str) -> None:
    argv = [*SIMULATED, "--find-rate", "--slo", slo, "--rates", "1,0.5,2", "--results", tmp_path]
    done = fgbench("sweep", *argv)
    assert done.exit_code == (1 if message else 2)
    assert message in words(done.output)
    if message:
        assert "no limit found" in done.output
        assert "depend on chance" in done.output
        assert "another seed may differ" in words(done.output)


# help and mistakes


def test_help_has_an_example() -> None:
    text = words(fgbench("sweep", "--help").output)
    for part in (
        "fgbench sweep --backend fastgen --backend fastgen-fcfs",
        "--resume",
        "Rate at an SLO",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rates", ""], "no rates are given: give --rates"),
        (["--rates", "1,x"], "--rates: 'x' is not a rate above 0"),
        (["--rates", "1,0"], "--rates: '0' is not a rate above 0"),
        (["--rates", "1,1.0"], "--rates: 1.0 is given twice"),
        (["--rates", "1", "--seeds", "0"], "--seeds must be at least 1, not 0"),
        (["--rates", "1", "--slo", "ttft<1"], "--slo needs --find-rate"),
        (["--rates", "1", "--find-rate"], "--find-rate needs --slo"),
        (["--rates", "inf", "--find-rate", "--slo", "ttft<1"], "--find-rate does not work with the rate inf"),
        (["--rates", "1", "--find-rate", "--slo", "ttft"], "is not a bound on a latency"),
        (["--rates", "1", "--find-rate", "--slo", "ttft<1", "--tolerance", "0"], "--tolerance must be"),
        (["--rates", "1", "--find-rate", "--slo", "ttft<1", "--max-probes", "0"], "--max-probes must be"),
        (["--rates", "1", "--backend", "simulated"], "--backend simulated is given twice"),
        (["--rates", "1", "--backend", "simulated-sj-mlfq"], "is the same as --backend simulated"),
        (["--rates", "1", "--backend", "nobody"], "there is no backend 'nobody'"),
        (
            ["--rates", "1", "--backend", "fastgen --nope"],
            "--backend 'fastgen --nope': No such option: --nope",
        ),
        (["--rates", "1", "--backend", "fastgen 'x"], "cannot be read: No closing quotation"),
        (["--rates", "1", "--backend", "fastgen-lifo"], "there is no policy 'lifo'"),
        (["--rates", "1", "--endpoint", "generate"], "--endpoint is a server's"),
        (["--rates", "1", "--dataset", "nothing"], "nothing"),
        (["--rates", "1", "--resume"], "holds no sweep to resume"),
        (["--resume", "/no/such/folder"], "/no/such/folder is not a sweep's folder"),
        (["/no/such/folder"], "give --resume /no/such/folder"),
    ],
)
def test_a_mistake_is_reported_in_one_sentence(tmp_path: Path, argv: list[str], message: str) -> None:
    done = fgbench("sweep", *SIMULATED, "--results", tmp_path, *argv)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not find_sweeps(tmp_path)


def test_options_of_a_server_do_not_work_with_a_running_server() -> None:
    done = fgbench("sweep", "--backend", "a=http://h:1", "--rates", "1", "--max-batch-size", "8")
    assert done.exit_code == 2
    assert "--max-batch-size is a server's option, and all of these run already" in done.stderr


def test_a_device_that_is_not_here_is_swept_from_a_config_file_and_marked(tmp_path: Path) -> None:
    config = tmp_path / "a100.toml"
    config.write_text(
        'model = "opt-13b"\ndevice-spec = "a100-40gb"\nstep-overhead-ms = 8.5\ndataset = "synthetic"\n'
        'input-len = "100"\noutput-len = "10"\nnum-prompts = 5\nrates = [1]\n'
        'backend = ["simulated-sj-mlfq", "simulated-fcfs --device-spec h100-sxm"]\n'
    )
    done = fgbench("sweep", "--config", config, "--results", tmp_path)
    assert done.exit_code == 0, done.output
    runs = [read_run(path) for path in find_runs(only_sweep(tmp_path))]
    profiles = sorted(run.info["backend"]["settings"]["profile"] for run in runs)
    assert profiles == [
        "a100-40gb, float16, analytic, 8.5 ms per step",
        "h100-sxm, float16, analytic, 8.5 ms per step",
    ]
    assert "ƒ an analytic device (a100-40gb, h100-sxm)" in words(done.output)
    assert done.output.count("1 △ ƒ") == 2
