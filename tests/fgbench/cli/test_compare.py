from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fgbench.cli.compare import compare

app = typer.Typer()
app.command()(compare)
runner = CliRunner()


def write_run(
    root: Path,
    name: str,
    backend: str,
    *,
    rate: float = 2.0,
    seed: int = 0,
    latency: float,
    status: str = "complete",
    num_prompts: int = 3,
) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    info = {
        "version": 1,
        "status": status,
        "model": "no-such-model",
        "fingerprint": f"{backend} {rate} {seed} {num_prompts}",
        "backend": {"name": backend, "policy": backend, "url": None, "settings": {}},
        "workload": {
            "dataset": "synthetic",
            "num_prompts": num_prompts,
            "rate": rate,
            "seed": seed,
            "arrivals": "poisson",
            "prompts_fingerprint": f"seed {seed}",
        },
    }
    (folder / "run.json").write_text(json.dumps(info))
    later = 1e-3 * seed  # seeds send at other times, as a Poisson process does
    records = [
        {
            "index": i,
            "scheduled": i + later * (i % 2),
            "sent": i + later * (i % 2),
            "prompt_tokens": 8,
            "asked_tokens": 2,
            "output_tokens": 2,
            "first_token": i + latency / 2,
            "last_token": i + latency,
            "token_times": [i + latency / 2, i + latency],
            "finished": i + latency,
        }
        for i in range(num_prompts if status == "complete" else 1)
    ]
    (folder / "requests.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A folder of runs: two backends, two rates, three seeds."""
    folder = tmp_path / "sweep"
    for backend, base in (("fastgen-fcfs", 2.0), ("fastgen", 1.0)):
        for rate in (1.0, 2.0):
            for seed in range(3):
                name = f"{backend}_{rate}_{seed}"
                wobble = 1.0 + 0.001 * seed * (backend == "fastgen")
                latency = base * rate * (1.0 + 0.01 * seed) * wobble
                write_run(folder, name, backend, rate=rate, seed=seed, latency=latency)
    (folder / "sweep.json").write_text("{}")
    return folder


@pytest.mark.slow
def test_the_newest_runs_are_compared_and_drawn(tmp_path: Path) -> None:
    write_run(tmp_path, "1_old", "fastgen", num_prompts=5, latency=9.0)
    write_run(tmp_path, "2_base", "fastgen-fcfs", latency=2.0)
    write_run(tmp_path, "3_ours", "fastgen", latency=1.0)
    result = runner.invoke(app, ["--results", str(tmp_path)], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "0.50x" in result.output
    assert "Left out: 1 older run on other workloads" in result.output
    (folder,) = (tmp_path / "compare").iterdir()
    drawn = ["attainment", "bars", "cdf", "queues"]
    expected = {f"{name}.{kind}" for name in drawn for kind in ("pdf", "png")}
    assert {path.name for path in folder.iterdir()} == expected
    assert f"in {folder}: bars, attainment, cdf, queues" in result.output


def test_a_damaged_folder_is_reported_and_the_others_are_compared(tmp_path: Path) -> None:
    write_run(tmp_path, "1", "fastgen-fcfs", latency=2.0)
    write_run(tmp_path, "2", "fastgen", latency=1.0)
    (write_run(tmp_path, "3", "fastgen", latency=1.0) / "run.json").write_text("{")
    result = runner.invoke(app, ["--results", str(tmp_path), "--no-pictures"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "0.50x" in result.output
    assert f"Left out: {tmp_path / '3' / 'run.json'} is damaged" in result.output


def test_runs_with_different_workloads_are_not_compared(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path, "1", "a", latency=1.0),
        write_run(tmp_path, "2", "b", latency=1.0),
        write_run(tmp_path, "3", "a", num_prompts=4, latency=1.0),
    ]
    result = runner.invoke(app, [*map(str, paths), "--no-pictures"])
    assert result.exit_code == 0
    assert "The workloads differ in number of prompts (3, 4)." in result.output


def test_runs_that_cannot_be_compared_exit_2(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path, "1", "a", latency=1.0),
        write_run(tmp_path, "2", "b", num_prompts=4, latency=1.0),
    ]
    result = runner.invoke(app, [*map(str, paths), "--no-pictures"])
    assert result.exit_code == 2
    assert "no two of these runs have the same workload" in result.output


def test_a_folder_of_runs_can_be_given(sweep: Path, tmp_path: Path) -> None:
    again = write_run(tmp_path, "again", "vllm", latency=9.0)
    write_run(sweep, "z_killed", "vllm", seed=1, latency=9.0, status="running")
    write_run(sweep, "z_failed_before", "vllm", latency=9.0, status="failed")
    (write_run(sweep, "z_damaged", "vllm", latency=9.0) / "run.json").write_text("{")
    arguments = [str(sweep), str(again), str(sweep / "fastgen_1.0_0"), "--no-pictures", "--slo", "jct<3"]
    result = runner.invoke(app, arguments, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    for expected in (
        "seeds 0, 1, 2",
        "0.50x ✔",
        "z_damaged/run.json is damaged",
        "◌ not a complete run",
        "SLO jct<3",
        "> 2/s > 1.",
    ):
        assert expected in result.output
    assert "#2" in result.output  # vllm: the failed run of the sweep, and the run given separately
    assert "fastgen #2" not in result.output  # the same folder, given twice


@pytest.mark.slow
def test_stdout_holds_only_the_requested_format(sweep: Path) -> None:
    """Pictures are still written; messages about them go to stderr."""

    def stdout(form: str, *more: str) -> str:
        result = runner.invoke(app, [str(sweep), form, "--out", str(sweep / "drawn"), *more])
        assert result.exit_code == 0, result.output
        return result.stdout

    (comparison,) = json.loads(stdout("--json"))["comparisons"]
    assert comparison["baseline"] == "fastgen-fcfs"
    ours = next(point for point in comparison["points"] if point["label"] == "fastgen")
    assert ours["figures"]["jct"]["mean"]["ratio"]["value"] == pytest.approx(0.5, rel=2e-3)
    assert ours["figures"]["jct"]["mean"]["verdict"] == "better"
    assert len(list((sweep / "drawn").glob("*/*.png"))) == 6
    rows = list(csv.DictReader(io.StringIO(stdout("--csv", "--no-pictures", "--terminal"))))
    assert {row["label"] for row in rows} == {"fastgen", "fastgen-fcfs"}
    assert any(row["metric"] == "jct" and row["verdict"] == "better" for row in rows)
    assert stdout("--markdown", "--no-pictures").startswith("### no-such-model on synthetic")


def test_pictures_can_be_drawn_in_the_terminal(sweep: Path) -> None:
    result = runner.invoke(app, [str(sweep), "--plot", "--no-pictures"], env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    assert "mean JCT (s)" in result.output
    assert "✚ fastgen" in result.output
    drawn = [line for line in result.output.splitlines() if not line.startswith("No slowdowns")]
    assert max(map(len, drawn)) <= 100
    assert not (sweep / "compare").exists()


def test_slowdowns_need_a_profile(sweep: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path / "empty"))
    result = runner.invoke(app, [str(sweep), "--no-pictures"])
    assert "No slowdowns: there is no profile of no-such-model" in result.output
    assert "fairness" not in result.output
    published = Path(__file__).parents[2] / "data" / "profile.json"
    other = runner.invoke(app, [str(sweep), "--no-pictures", "--profile", str(published)])
    assert "No slowdowns of no-such-model" in other.output
    profile = json.loads(published.read_text())
    for model, measured in (("no-such-model", "2026-01-01"), ("no-such-model", "2026-02-01")):
        path = tmp_path / "empty" / "profiles" / f"{model}-device{measured}-float32.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        device = f"device of {measured}"
        path.write_text(json.dumps(profile | {"model": model, "measured": measured, "device": device}))
    cached = runner.invoke(app, [str(sweep), "--no-pictures"], env={"COLUMNS": "150"})
    assert "alone on device of 2026-02-01" in cached.output
    assert "fairness (Jain)" in cached.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--slo", "ttfs<1"], "'ttfs' is no figure that an SLO can bound"),
        (["--json", "--csv"], "exclude each other"),
        (["--profile", "nowhere.json"], "cannot read the profile nowhere.json"),
        (["--baseline", "x"], "no run is called x"),
    ],
)
def test_wrong_usage_is_one_sentence(sweep: Path, arguments: list[str], message: str) -> None:
    result = runner.invoke(app, [str(sweep), "--no-pictures", *arguments])
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_help_has_an_example() -> None:
    result = runner.invoke(app, ["--help"], env={"COLUMNS": "120"})
    for expected in (
        "fgbench compare --baseline fastgen-fcfs",
        "--slo",
        "--markdown",
        "--terminal",
        "--profile",
    ):
        assert expected in result.output


@pytest.mark.parametrize("arguments", [["--results", "nowhere"], ["nowhere"], ["{run}", "--baseline", "x"]])
def test_a_missing_folder_or_run_is_named(tmp_path: Path, arguments: list[str]) -> None:
    run = write_run(tmp_path, "1", "a", latency=1.0)
    result = runner.invoke(app, [argument.format(run=run) for argument in arguments])
    assert isinstance(result.exception, ValueError)
    assert "nowhere" in str(result.exception) or "no run is called x" in str(result.exception)


def test_only_the_runs_with_the_newest_workload_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There can be hundreds of folders, of megabytes each; most are not needed."""
    from fgbench.results import run as folders

    for name, seed in (("1_old", 1), ("2_a", 0), ("3_b", 0), ("4_cut-off", 2)):
        (tmp_path / name).mkdir()
        workload = {"dataset": "d", "num_prompts": 1 + seed, "rate": 1.0, "arrivals": "poisson"}
        info = {"version": 1, "status": "complete", "model": "m", "fingerprint": name, "workload": workload}
        (tmp_path / name / "run.json").write_text(json.dumps(info | {"backend": {"name": name}}))
        line = '{"index": 0, "scheduled": 0, "sent": 0, "prompt_tokens": 1, "asked_tokens": 1'
        line += ', "output_tokens": 1, "first_token": 1.0, "last_token": 1.0, "finished": 1.0}\n'
        (tmp_path / name / "requests.jsonl").write_text(line[:20] if "cut" in name else line)
    read: list[str] = []
    read_run = folders.read_run
    monkeypatch.setattr(folders, "read_run", lambda path: (read.append(path.name), read_run(path))[1])
    result = runner.invoke(app, ["--results", str(tmp_path), "--no-pictures"])
    assert result.exit_code == 0, result.output
    assert read == ["2_a", "3_b"]
    assert "1 older run on other workloads" in result.output
