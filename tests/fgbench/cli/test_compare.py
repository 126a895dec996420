from __future__ import annotations

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
    root: Path, name: str, backend: str, *, rate: float = 2.0, seed: int = 0, latency: float
) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    info = {
        "version": 1,
        "status": "complete",
        "model": "smollm2-135m",
        "backend": {"name": backend, "policy": backend, "url": None, "settings": {}},
        "workload": {
            "dataset": "synthetic",
            "num_prompts": 3,
            "rate": rate,
            "seed": seed,
            "arrivals": "poisson",
            "prompts_fingerprint": f"seed {seed}",
        },
    }
    (folder / "run.json").write_text(json.dumps(info))
    records = [
        {
            "index": i,
            "scheduled": float(i),
            "sent": float(i),
            "prompt_tokens": 8,
            "asked_tokens": 2,
            "output_tokens": 2,
            "first_token": i + latency / 2,
            "last_token": i + latency,
            "token_times": [i + latency / 2, i + latency],
            "finished": i + latency,
        }
        for i in range(3)
    ]
    (folder / "requests.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_newest_runs_are_compared_and_plotted(tmp_path: Path) -> None:
    write_run(tmp_path, "1_old", "fastgen", seed=5, latency=9.0)
    write_run(tmp_path, "2_base", "fastgen-fcfs", latency=2.0)
    write_run(tmp_path, "3_ours", "fastgen", latency=1.0)
    result = runner.invoke(app, ["--results", str(tmp_path)], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "0.50x" in result.output
    assert "Left out: 1 older runs on other workloads" in result.output
    plots = sorted((tmp_path / "compare").iterdir())
    assert [plot.suffix for plot in plots] == [".pdf", ".png"]
    for plot in plots:
        assert str(plot) in result.output


def test_a_damaged_folder_does_not_hide_the_others(tmp_path: Path) -> None:
    write_run(tmp_path, "1", "fastgen-fcfs", latency=2.0)
    write_run(tmp_path, "2", "fastgen", latency=1.0)
    (write_run(tmp_path, "3", "fastgen", latency=1.0) / "run.json").write_text("{")
    result = runner.invoke(app, ["--results", str(tmp_path)], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "0.50x" in result.output
    assert f"Left out: {tmp_path / '3' / 'run.json'} is damaged" in result.output


def test_other_workloads_are_shown_apart_with_a_reason(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path, "1", "a", latency=1.0),
        write_run(tmp_path, "2", "b", latency=1.0),
        write_run(tmp_path, "3", "a", seed=1, latency=1.0),
    ]
    result = runner.invoke(app, [*map(str, paths), "--out", str(tmp_path / "plots")])
    assert result.exit_code == 0
    assert "not compared across them: they differ in seed (0, 1)" in result.output
    assert len(list((tmp_path / "plots").glob("*.png"))) == 2


def test_nothing_comparable_is_wrong_usage(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path, "1", "a", latency=1.0),
        write_run(tmp_path, "2", "b", seed=1, latency=1.0),
    ]
    result = runner.invoke(app, [*map(str, paths), "--out", str(tmp_path / "plots")])
    assert result.exit_code == 2
    assert "no two of these runs are on the same workload" in result.output


def test_json_is_all_that_stdout_holds(tmp_path: Path) -> None:
    write_run(tmp_path, "1", "fastgen-fcfs", latency=2.0)
    write_run(tmp_path, "2", "fastgen", latency=1.0)
    result = runner.invoke(app, ["--results", str(tmp_path), "--json"])
    data = json.loads(result.stdout)
    (comparison,) = data["comparisons"]
    assert comparison["baseline"] == "fastgen-fcfs"
    ours = next(run for run in comparison["runs"] if run["label"] == "fastgen")
    assert ours["ratios"]["jct"]["mean"] == pytest.approx(0.5)


@pytest.mark.parametrize("arguments", [["--results", "nowhere"], ["nowhere"], ["{run}", "--baseline", "x"]])
def test_what_is_not_there_is_named(tmp_path: Path, arguments: list[str]) -> None:
    run = write_run(tmp_path, "1", "a", latency=1.0)
    result = runner.invoke(app, [argument.format(run=run) for argument in arguments])
    assert isinstance(result.exception, ValueError)
    assert "nowhere" in str(result.exception) or "no run is called x" in str(result.exception)


def test_only_the_runs_on_the_newest_workload_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of hundreds of folders, megabytes each, the requests of a few matter."""
    from fgbench.results import run as folders

    for name, seed in (("1_old", 1), ("2_a", 0), ("3_b", 0), ("4_cut-off", 2)):
        (tmp_path / name).mkdir()
        workload = {"dataset": "d", "num_prompts": 1, "seed": seed, "rate": 1.0, "arrivals": "poisson"}
        info = {"version": 1, "status": "complete", "model": "m", "fingerprint": name, "workload": workload}
        (tmp_path / name / "run.json").write_text(json.dumps(info | {"backend": {"name": name}}))
        line = '{"index": 0, "scheduled": 0, "sent": 0, "prompt_tokens": 1, "asked_tokens": 1'
        line += ', "output_tokens": 1, "first_token": 1.0, "last_token": 1.0, "finished": 1.0}\n'
        (tmp_path / name / "requests.jsonl").write_text(line[:20] if "cut" in name else line)
    read: list[str] = []
    whole = folders.read_run
    monkeypatch.setattr(folders, "read_run", lambda path: (read.append(path.name), whole(path))[1])
    result = runner.invoke(app, ["--results", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert read == ["2_a", "3_b"]
    assert "1 older runs on other workloads" in result.output
