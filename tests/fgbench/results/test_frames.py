"""Runs as DataFrames."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import fgbench
from fgbench.metrics.metric import METRICS
from fgbench.metrics.record import RequestRecord
from fgbench.results.database import Database
from fgbench.results.frames import requests_table
from fgbench.results.run import read_info, read_run, summary_of
from fgbench.results.table import records_of

Write = Callable[..., Path]
SERVER_REPORT = {"queued": 0.25, "decode": 0.75, "preemptions": 2.0}


def served(index: int, latency: float = 1.0) -> RequestRecord:
    times = (index + latency / 2, index + latency)
    return RequestRecord(
        index, float(index), index + 0.1, 8, 2, 2, times[0], times[1], times, times[1], server=SERVER_REPORT
    )


MIXED = [
    served(1, 2.0),
    served(0, 1.0),
    RequestRecord(2, 2.0, 2.0, 8, 2, finished=2.5, error="http 500: no"),
    RequestRecord(3, 3.0, 3.0, 8, 2, finished=3.5, rejected="http 429: full"),
]
"""Requests in the order in which they ended."""


@pytest.fixture(params=["requests.parquet", "requests.jsonl"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, write_run: Write) -> Path:
    """Return a run whose requests are only in one of the two files."""
    path = write_run(tmp_path / "runs", "fastgen", MIXED)
    removed = {"requests.parquet": "requests.jsonl", "requests.jsonl": "requests.parquet"}[request.param]
    (path / removed).unlink()
    return path


def test_there_is_one_row_per_request(folder: Path) -> None:
    frame = fgbench.load_runs(folder)
    assert frame["index"].tolist() == [0, 1, 2, 3]
    assert frame["ok"].tolist() == [True, True, False, False]
    assert frame["jct"].tolist()[:2] == [1.0, 2.0]
    assert frame["normalized_latency"].tolist()[:2] == [0.5, 1.0]
    assert frame["jct"].isna().tolist() == [False, False, True, True]
    assert frame["lag"].tolist() == pytest.approx([0.1, 0.1, 0.0, 0.0])
    assert frame["error"].tolist()[2] == "http 500: no"
    assert frame["rejected"].isna().tolist() == [True, True, True, False]
    assert list(frame["token_times"][1]) == [2.0, 3.0]
    assert frame["server_queued"].tolist()[:2] == [0.25, 0.25]
    assert frame["server_preemptions"].isna().tolist() == [False, False, True, True]
    assert not frame["trimmed"].any()


def test_latencies_equal_those_of_the_summary(folder: Path, write_run: Write, tmp_path: Path) -> None:
    """The table of metrics defines both."""
    frame = fgbench.load_runs(folder)
    summary = summary_of(read_run(write_run(tmp_path / "whole", "fastgen", MIXED)))
    keys = [m.key for m in METRICS if m.of_request is not None and not m.several_per_request]
    assert set(keys) == set(summary.distributions) - {"itl"}
    for key in keys:
        distribution = summary.distributions[key]
        assert frame[key].count() == distribution.count
        assert frame[key].mean() == pytest.approx(distribution.mean)
        assert frame[key].quantile(0.95) == pytest.approx(distribution.p95)


def test_columns_of_the_run_are_categoricals(tmp_path: Path, write_run: Write) -> None:
    for backend in ("a", "b"):
        for rate in (10.0, 2.0):
            write_run(tmp_path, backend, rate=rate, seed=3)
    frame = fgbench.load_runs(tmp_path)
    for name in ("run", "path", "status", "backend", "policy", "model", "dataset", "rate", "seed"):
        assert isinstance(frame[name].dtype, pd.CategoricalDtype), name
    assert frame["rate"].cat.categories.tolist() == [2.0, 10.0]
    assert frame["rate"].cat.ordered
    assert not frame["backend"].cat.ordered
    table = frame.groupby(["rate", "backend"], observed=True)["jct"].mean().unstack()
    assert table.loc[2.0].to_dict() == {"a": 1.0, "b": 1.0}
    assert (frame["seed"].astype(int) == 3).all()


def test_closed_loops_have_a_concurrency(tmp_path: Path, write_run: Write) -> None:
    process = {"name": "closed", "concurrency": 8}
    closed = write_run(tmp_path, "a", rate="inf", arrivals="closed concurrency=8", arrival_process=process)
    frame = fgbench.load_runs(closed, write_run(tmp_path, "b"))
    assert frame["concurrency"].astype(float).tolist()[:4] == [8.0] * 4
    assert frame["concurrency"].isna().tolist()[4:] == [True] * 4
    (row,) = fgbench.runs(closed).to_dict("records")
    assert (row["rate"], row["concurrency"]) == (math.inf, 8)


def test_trimmed_requests_are_marked(tmp_path: Path, write_run: Write) -> None:
    frame = fgbench.load_runs(write_run(tmp_path, "a", trim={"start": "1s", "end": "0s"}))
    assert frame["trimmed"].tolist() == [True, False, False, False]


def test_a_killed_run_gives_the_requests_that_had_ended(tmp_path: Path, write_run: Write) -> None:
    folder = write_run(tmp_path, "a", status="running")
    with (folder / "requests.jsonl").open("ab") as file:
        file.write(b'{"index": 4, "sched')
    frame = fgbench.load_runs(tmp_path)
    assert (len(frame), set(frame["status"])) == (4, {"incomplete"})
    (row,) = fgbench.runs(tmp_path).to_dict("records")
    assert (row["status"], row["requests"], row["jct_mean"]) == ("incomplete", 4, 1.0)


def test_runs_without_requests_give_no_rows(tmp_path: Path, write_run: Write) -> None:
    empty = write_run(tmp_path, "a", [], status="failed")
    assert len(fgbench.load_runs(empty)) == 0
    assert len(fgbench.runs(empty)) == 1
    columns = fgbench.load_runs(write_run(tmp_path, "b")).columns
    assert list(fgbench.load_runs(empty).columns) == list(columns)


def test_runs_have_the_columns_of_the_sql_table(tmp_path: Path, write_run: Write) -> None:
    folder = write_run(tmp_path, "fastgen", MIXED)
    frame = fgbench.runs(tmp_path)
    with Database(tmp_path) as database:
        assert list(frame.columns) == [name for name, _ in database.schema()["runs"]]
        ((run, jct, p95, errors),) = database.ask("SELECT run, jct_mean, ttft_p95, errors FROM runs").rows
    (row,) = frame.to_dict("records")
    assert (row["run"], row["jct_mean"], row["ttft_p95"], row["errors"]) == (run, jct, p95, errors)
    assert row["path"] == str(folder)
    assert row["started"].tzinfo is not None
    assert row["started"] <= row["ended"]


def test_records_survive_the_parquet_file(tmp_path: Path, write_run: Write) -> None:
    folder = write_run(tmp_path, "a", MIXED)
    (folder / "requests.jsonl").unlink()
    records = records_of(requests_table(folder, read_info(folder)))
    assert records == sorted(MIXED, key=lambda record: record.index)
    none = write_run(tmp_path, "b", [])
    assert records_of(requests_table(none, read_info(none))) == []


def test_a_parquet_with_other_columns_is_not_read(tmp_path: Path, write_run: Write) -> None:
    """Older versions wrote such files."""
    import pyarrow.parquet as pq

    folder = write_run(tmp_path, "a")
    table = pq.read_table(folder / "requests.parquet")
    pq.write_table(table.drop_columns(["rejected"]), folder / "requests.parquet")
    assert fgbench.load_runs(folder)["rejected"].isna().all()
    with Database(tmp_path) as database:
        assert database.ask("SELECT count(*), count(rejected) FROM requests").rows == [(4, 0)]


def test_sql_reads_complete_runs_from_their_parquet(tmp_path: Path, write_run: Write) -> None:
    names = {write_run(tmp_path, "a").name, write_run(tmp_path, "b").name}
    for path in tmp_path.glob("*/requests.jsonl"):
        path.write_text("damaged\n\n")
    killed = write_run(tmp_path, "c", status="running").name
    with Database(tmp_path) as database:
        counts = dict(database.ask("SELECT run, count(*) FROM requests GROUP BY run").rows)
        assert counts == dict.fromkeys((*names, killed), 4)
        (row,) = database.ask(f"SELECT sum(last_token) FROM requests WHERE run = '{killed}'").rows
        assert row == (10.0,)


def test_the_same_folder_is_read_once(tmp_path: Path, write_run: Write) -> None:
    folder = write_run(tmp_path, "a")
    assert len(fgbench.load_runs(folder, tmp_path, tmp_path / "." / folder.name)) == 4
    assert len(fgbench.runs(folder, tmp_path)) == 1


def test_an_error_names_a_path_without_runs(tmp_path: Path) -> None:
    for read in (fgbench.load_runs, fgbench.runs, fgbench.compare):
        with pytest.raises(ValueError, match=r"nowhere is neither a run folder nor a folder of runs"):
            read(tmp_path / "nowhere")


def test_only_damaged_runs_give_an_empty_frame(tmp_path: Path, write_run: Write) -> None:
    columns = [list(read(write_run(tmp_path, "a")).columns) for read in (fgbench.load_runs, fgbench.compare)]
    for path in tmp_path.glob("*/run.json"):
        path.write_text("{")
    for read, expected in zip((fgbench.load_runs, fgbench.compare), columns, strict=True):
        with pytest.warns(UserWarning, match=r"Left out: .*run\.json is damaged"):
            frame = read(tmp_path)
        assert (len(frame), list(frame.columns)) == (0, expected)


def test_no_path_means_results(tmp_path: Path, write_run: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in ("fastgen-fcfs", "fastgen"):
        write_run(tmp_path / "results", backend)
    monkeypatch.chdir(tmp_path)
    assert len(fgbench.load_runs()) == 8
    assert len(fgbench.runs()) == 2
    assert set(fgbench.compare()["label"]) == {"fastgen-fcfs", "fastgen"}


def of_seed(seed: int, records: list[RequestRecord]) -> list[RequestRecord]:
    """Return the records with prompts of another length for each seed."""
    return [replace(record, prompt_tokens=8 + seed) for record in records]


def test_a_comparison_is_tidy(tmp_path: Path, write_run: Write) -> None:
    for seed in range(3):
        for backend, latency in (("fastgen-fcfs", 2.0 + seed / 100), ("fastgen", 1.0 + seed / 199)):
            records = of_seed(seed, [served(i, latency) for i in range(4)])
            write_run(tmp_path, backend, records, seed=seed)
    frame = fgbench.compare(tmp_path, slo="jct<1.5")
    columns = {"label", "rate", "metric", "statistic", "value", "low", "high", "ratio", "verdict"}
    assert columns <= set(frame.columns)
    mean = frame[(frame["metric"] == "jct") & (frame["statistic"] == "mean")].set_index("label")
    assert mean.loc["fastgen", "value"] == pytest.approx(1.005, rel=1e-3)
    assert mean.loc["fastgen", "ratio"] == pytest.approx(0.5, rel=1e-3)
    assert mean.loc["fastgen", "verdict"] == "better"
    assert mean.loc["fastgen", "low"] < 1.005 < mean.loc["fastgen", "high"]
    assert pd.isna(mean.loc["fastgen-fcfs", "ratio"])
    assert mean["seeds"].tolist() == [3, 3]
    attained = frame[frame["metric"] == "attainment"].set_index("label")
    assert attained["value"].to_dict() == {"fastgen": 1.0, "fastgen-fcfs": 0.0}
    assert set(attained["statistic"]) == {"jct<1.5"}
    assert not (frame["metric"] == "slowdown").any()
    other = fgbench.compare(tmp_path, baseline="fastgen")
    assert set(other["baseline"]) == {"fastgen"}


@pytest.mark.slow
def test_slowdowns_need_a_profile(tmp_path: Path, write_run: Write) -> None:
    write_run(tmp_path, "fastgen")
    published = Path(__file__).parents[3] / "results" / "reference" / "smollm2-cpu"
    with pytest.warns(UserWarning, match="No slowdowns of no-such-model"):
        fgbench.compare(tmp_path, profile=published / "profile.json")
    frame = fgbench.compare(published, profile=published / "profile.json")
    assert (frame["metric"] == "slowdown").any()


def test_published_runs_have_the_means_in_their_run_json() -> None:
    published = Path(__file__).parents[3] / "results" / "reference" / "smollm2-cpu"
    means = fgbench.load_runs(published).groupby("run", observed=True)["normalized_latency"].mean()
    stored = fgbench.runs(published).set_index("run")["normalized_latency_mean"]
    assert len(means) >= 4
    assert means.to_dict() == pytest.approx(stored.to_dict())


def test_importing_fgbench_imports_no_large_packages() -> None:
    code = "import sys, fgbench; print([m for m in ('pandas', 'pyarrow', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
