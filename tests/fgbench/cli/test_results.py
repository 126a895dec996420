from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fgbench.cli.main import app
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import summarize
from fgbench.results.run import find_runs, read_run
from fgbench.results.writer import RunWriter


def info(backend: str, rate: float = 2.0, seed: int = 0, **parts: object) -> dict[str, object]:
    return {
        "backend": {"name": backend, "policy": backend, "url": None, "settings": {"max_batch_size": 16}},
        "model": "smollm2-135m",
        "workload": {
            "dataset": "synthetic",
            "num_prompts": 4,
            "rate": rate,
            "seed": seed,
            "arrivals": "poisson",
            "prompts_fingerprint": "p",
        },
        "environment": {},
        "fingerprint": f"{backend} {rate}",
        **parts,
    }


def records(latency: float, count: int = 4, error: str | None = None) -> list[RequestRecord]:
    return [
        RequestRecord(
            i, float(i), float(i), 8, 2, 2, i + latency / 2, i + latency, (i + latency / 2, i + latency),
            i + latency, error=error if i == 0 else None, server={"queued": 0.25},
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A results folder: a complete run, one with an error, a killed one, one of a sweep, a damaged one."""
    root = tmp_path / "runs"
    for backend, error in (("fastgen-fcfs", None), ("fastgen", "http 500: no")):
        with RunWriter(root, info(backend)) as writer:
            for record in (made := records(1.0, error=error)):
                writer.append(record)
            writer.finish("complete", made, summarize(made, offered_rate=2.0).to_dict())
    killed = RunWriter(root, info("fastgen", rate=3.0))
    killed.append(records(2.0)[0])
    killed._requests.write(b'{"index": 1, "sched')
    killed._requests.close()
    sweep = root / "20300101-000000_sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text("{}")
    with RunWriter(sweep, info("vllm", rate=1.5)) as writer:
        writer.append(records(1.0)[0])
        writer.finish("interrupted", records(1.0, 1), summarize(records(1.0, 1), offered_rate=1.5).to_dict())
    damaged = root / "20200101-000000_damaged"
    damaged.mkdir()
    (damaged / "run.json").write_text("{")
    (root / "compare").mkdir()
    (root / "compare" / "latency.png").touch()
    return root


def results(verb: str, root: Path, *argv: str, answer: str | None = None) -> Result:
    argv = ("results", verb, *argv, "--results", str(root))
    return CliRunner().invoke(app, argv, input=answer, env={"COLUMNS": "160"})


def name_of(root: Path, backend: str, rate: float) -> str:
    (name,) = (path.name for path in find_runs(root) if f"_{backend}_synthetic_r{rate:g}_" in path.name)
    return name


def test_list_shows_all_runs_and_names_damaged_ones(root: Path) -> None:
    result = results("list", root)
    assert result.exit_code == 0, result.output
    assert "Left out" in result.output
    assert "20200101-000000_damaged/run.json is damaged" in result.output
    for word in (
        "fastgen-fcfs",
        "vllm",
        "incomplete",
        "interrupted",
        "1/4",
        "1 failed",
        "20300101-000000_sweep",
    ):
        assert word in result.output, word
    assert "500 ms" in result.output  # the mean normalized latency


def test_list_shows_the_newest_runs_first(root: Path) -> None:
    names = [row["name"] for row in json.loads(results("list", root, "--json").stdout)]
    assert names == sorted(names, reverse=True)
    assert len(names) == 4


@pytest.mark.parametrize(
    ("argv", "backends"),
    [
        (["--backend", "fastgen"], ["fastgen", "fastgen"]),
        (["--status", "incomplete"], ["fastgen"]),
        (["--backend", "fastgen-fcfs", "--status", "complete"], ["fastgen-fcfs"]),
        (["--backend", "nobody"], []),
    ],
)
def test_list_filters_by_backend_and_status(root: Path, argv: list[str], backends: list[str]) -> None:
    rows = json.loads(results("list", root, *argv, "--json").stdout)
    assert [row["backend"] for row in rows] == backends


def test_a_run_in_progress_cannot_be_removed(tmp_path: Path) -> None:
    with RunWriter(tmp_path, info("fastgen")) as writer:
        (row,) = json.loads(results("list", tmp_path, "--json").stdout)
        assert row["status"] == "running"
        refused = results("rm", tmp_path, writer.path.name, "--yes")
        assert (refused.exit_code, writer.path.is_dir()) == (2, True)
        assert results("rm", tmp_path, "--incomplete", "--yes").exit_code == 0
        assert writer.path.is_dir()


def test_show_prints_the_figures_of_complete_and_killed_runs(root: Path) -> None:
    complete = results("show", root, name_of(root, "fastgen-fcfs", 2.0))
    assert complete.exit_code == 0, complete.output
    for words in ("fastgen-fcfs, smollm2-135m, synthetic, 2/s", "4 of 4 answered in full", "client's lag"):
        assert words in complete.output
    killed = results("show", root, name_of(root, "fastgen", 3.0))
    assert killed.exit_code == 0, killed.output
    assert "incomplete: 1 of 4 requests had ended" in killed.output
    assert "1 of 1 answered in full" in killed.output
    data = json.loads(results("show", root, name_of(root, "fastgen", 3.0), "--json").stdout)
    assert data["status"] == "incomplete"
    assert data["summary"]["jct"]["mean"] == 2.0


def test_a_run_is_given_by_its_path_or_the_beginning_of_its_name(root: Path) -> None:
    (path,) = (path for path in find_runs(root) if "vllm" in path.name)
    assert results("show", root, str(path)).exit_code == 0
    assert results("show", root, path.name[:-3]).exit_code == 0


def test_show_leaves_out_trimmed_requests(tmp_path: Path) -> None:
    made = records(1.0)
    with RunWriter(tmp_path, info("a", trim={"start": "1s", "end": "0s"})) as writer:
        for record in made:
            writer.append(record)
        writer.finish("complete", made, None)
    data = json.loads(results("show", tmp_path, writer.path.name, "--json").stdout)
    assert (data["summary"]["requests"], data["summary"]["trimmed"]) == (3, 1)


def test_rm_asks_first_and_removes_only_the_given_run(root: Path) -> None:
    name, before = name_of(root, "fastgen", 3.0), find_runs(root)
    refused = results("rm", root, name, answer="n\n")
    assert (refused.exit_code, find_runs(root)) == (1, before)
    assert name in refused.output.replace("\n", "")
    done = results("rm", root, name, answer="y\n")
    assert done.exit_code == 0, done.output
    assert [path.name for path in before if path not in find_runs(root)] == [name]


def test_rm_incomplete_removes_killed_runs(root: Path) -> None:
    before = set(find_runs(root))
    assert results("rm", root, "--incomplete", "--yes").exit_code == 0
    removed = before - set(find_runs(root))
    assert [path.name for path in removed] == [path.name for path in before if "_r3_" in path.name]
    assert "no run that was killed" in results("rm", root, "--incomplete", "--yes").output


def test_rm_removes_only_run_folders(root: Path, tmp_path: Path) -> None:
    run = next(path for path in find_runs(root) if "fcfs" in path.name)
    link = root / "20990101-000000_link"
    link.symlink_to(run)
    home = RunWriter(tmp_path / "more", info("a")).path
    (home / "notes").mkdir()
    for name in ("compare", "20300101-000000_sweep", "20200101", str(link), str(home), str(tmp_path), ""):
        result = results("rm", root, name, "--yes")
        assert result.exit_code == 2, (name, result.output)
    assert results("rm", root, "--yes").exit_code == 2  # no run is given
    assert len(find_runs(root)) == 6
    assert (home / "run.json").is_file()


def test_rm_removes_nothing_if_one_run_cannot_be_removed(root: Path) -> None:
    names = [path.name for path in find_runs(root)]
    (root / name_of(root, "fastgen", 3.0) / "notes").mkdir()
    assert results("rm", root, *(n for n in names if "damaged" not in n), "--yes").exit_code == 2
    assert [path.name for path in find_runs(root)] == names


def ask(root: Path, query: str) -> list[dict[str, object]]:
    result = results("sql", root, query, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_sql_queries_runs_and_requests_including_killed_runs(root: Path) -> None:
    query = "SELECT backend, rate, status, ok, jct_mean, ttft_p50 FROM runs ORDER BY rate, backend"
    assert ask(root, query) == [
        dict(zip(("backend", "rate", "status", "ok", "jct_mean", "ttft_p50"), row, strict=True))
        for row in (
            ("vllm", 1.5, "interrupted", 1, 1.0, 0.5),
            ("fastgen", 2.0, "complete", 3, 1.0, 0.5),
            ("fastgen-fcfs", 2.0, "complete", 4, 1.0, 0.5),
            ("fastgen", 3.0, "incomplete", 1, 2.0, 1.0),
        )
    ]
    per_run = ask(root, "SELECT count(*) AS n, max(last_token) AS last FROM requests GROUP BY run ORDER BY n")
    assert [row["n"] for row in per_run] == [1, 1, 4, 4]
    (row,) = ask(root, "SELECT server['queued'] AS q, token_times FROM requests WHERE index = 3 LIMIT 1")
    assert row == {"q": 0.25, "token_times": [3.5, 4.0]}
    (row,) = ask(root, "SELECT settings->>'max_batch_size' AS batch FROM runs LIMIT 1")
    assert row == {"batch": "16"}


def test_sql_has_the_kv_memory_accounting(root: Path) -> None:
    after = {"uptime_seconds": 10.0, "pressure_seconds": 2.0, "copy_wait_seconds": 4.0}
    with RunWriter(root, info("memory")) as writer:
        stats = {"before": dict.fromkeys(after, 0.0), "after": after}
        writer.finish("complete", [], None, server_stats=stats)
    columns = "pressure_seconds, copy_wait_seconds, copy_wait_share"
    (row,) = ask(root, f"SELECT {columns} FROM runs WHERE backend = 'memory'")
    assert row == {"pressure_seconds": 2.0, "copy_wait_seconds": 4.0, "copy_wait_share": 0.4}
    (row,) = ask(root, f"SELECT {columns} FROM runs WHERE backend = 'vllm'")
    assert set(row.values()) == {None}


def test_sql_formats(root: Path) -> None:
    query = "SELECT backend, jct_mean FROM runs ORDER BY started LIMIT 2"
    table = results("sql", root, query)
    assert table.exit_code == 0
    assert "fastgen-fcfs" in table.output
    rows = list(csv.reader(io.StringIO(results("sql", root, query, "--csv").stdout)))
    assert rows == [["backend", "jct_mean"], ["fastgen-fcfs", "1.0"], ["fastgen", "1.0"]]


def test_sql_without_a_query_shows_the_tables_and_an_example_that_works(root: Path) -> None:
    from fgbench.results.database import EXAMPLE

    shown = results("sql", root)
    assert shown.exit_code == 0, shown.output
    for word in (
        "runs, 4 rows",
        "requests, 10 rows",
        "normalized_latency_p99 DOUBLE",
        "token_times DOUBLE[]",
    ):
        assert word in " ".join(shown.output.split()), word
    assert len(ask(root, EXAMPLE)) == 4


@pytest.mark.parametrize(
    "query",
    [
        "COPY runs TO '{out}'",
        "EXPORT DATABASE '{out}'",
        "ATTACH '{out}'",
        "SELECT * FROM read_csv('/etc/hostname')",
        "SELECT * FROM '/etc/hostname'",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM read_parquet('{run}/requests.parquet')",
        "EXPLAIN ANALYZE COPY runs TO '{out}'",
        "EXPLAIN ANALYZE INSERT INTO requests SELECT * FROM requests",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "DROP TABLE runs",
        "DELETE FROM requests",
        "SELECT 1; SELECT 2",
        "SELECT nothing FROM runs",
        "SELEC",
        "",
    ],
)
@pytest.mark.slow
def test_sql_can_only_read_the_runs(
    root: Path, tmp_path: Path, query: str, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run = next(path for path in find_runs(root) if "fcfs" in path.name)
    before = {path: path.read_bytes() for path in run.iterdir()}
    result = results("sql", root, query.format(out=out, run=run))
    assert result.exit_code == 2
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    assert "Traceback" not in capfd.readouterr().err
    assert not out.exists()


def test_an_empty_results_folder_is_reported(tmp_path: Path) -> None:
    for verb, words in (("list", "holds no run"), ("sql", "runs, 0 rows")):
        result = results(verb, tmp_path / "nowhere")
        assert result.exit_code == 0, result.output
        assert words in result.output.replace("\n", " ")
    assert results("list", tmp_path, "--status", "good").exit_code == 2
    assert results("show", tmp_path, "x").exit_code == 2


@pytest.mark.parametrize("verb", ["list", "show", "rm", "sql"])
def test_help_has_an_example(verb: str) -> None:
    result = CliRunner().invoke(app, ["results", verb, "--help"], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert f"fgbench results {verb}" in result.output


def test_read_records_equal_the_written_ones(root: Path) -> None:
    run = read_run(next(path for path in find_runs(root) if "fcfs" in path.name))
    assert run.records == tuple(records(1.0))


def test_rejected_and_failed_requests_are_counted_separately(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    rejected = RequestRecord(4, 4.0, 4.0, 8, 2, finished=4.1, rejected="http 429: the queue is full")
    made = [*records(1.0), rejected]
    with RunWriter(root, info("fastgen")) as writer:
        for record in made:
            writer.append(record)
        writer.finish("complete", made, summarize(made, offered_rate=2.0).to_dict())
    assert "1 rejected" in results("list", root).output
    assert "failed" not in results("list", root).output
    (listed,) = json.loads(results("list", root, "--json").output)
    assert listed["summary"]["rejected"] == 1
    shown = results("show", root, name_of(root, "fastgen", 2.0)).output
    assert "4 of 5 answered in full, 20% rejected" in shown
    query = "SELECT rejected, failed, rejected_share, rejections FROM runs"
    (row,) = json.loads(results("sql", root, query, "--json").output)
    assert row == {"rejected": 1, "failed": 0, "rejected_share": 0.2, "rejections": '{"http 429": 1}'}
    query = "SELECT index, rejected FROM requests WHERE rejected IS NOT NULL"
    assert json.loads(results("sql", root, query, "--json").output) == [
        {"index": 4, "rejected": "http 429: the queue is full"}
    ]


def test_a_run_older_than_rejections_has_none(root: Path) -> None:
    for path in root.rglob("requests.jsonl"):
        path.write_bytes(path.read_bytes().replace(b',"rejected":null', b""))
        assert b"rejected" not in path.read_bytes()
    for path in find_runs(root):
        if "damaged" not in path.name:
            assert all(record.rejected is None and record.index >= 0 for record in read_run(path).records)
    (row,) = json.loads(results("sql", root, "SELECT sum(rejected) AS n FROM runs", "--json").stdout)
    assert row == {"n": 0}


def test_list_filters_by_model_and_dataset_and_shows_the_newest(root: Path) -> None:
    listed = json.loads(results("list", root, "--json").stdout)
    newest = json.loads(results("list", root, "--last", "2", "--json").stdout)
    assert newest == listed[:2]
    dataset, model = listed[0]["dataset"], listed[0]["model"]
    same = json.loads(results("list", root, "--dataset", dataset, "--model", model, "--json").stdout)
    assert same == [row for row in listed if (row["dataset"], row["model"]) == (dataset, model)]
    assert json.loads(results("list", root, "--dataset", "none-such", "--json").stdout) == []
    assert "no run that matches" in results("list", root, "--model", "none-such").stdout


def test_the_list_fits_eighty_columns(root: Path) -> None:
    done = CliRunner().invoke(app, ["results", "list", "--results", str(root)], env={"COLUMNS": "80"})
    lines = done.stdout.splitlines()
    assert [line for line in lines if len(line) > 80 and "Left out" not in line] == []
    assert any(line.split()[1:2] == ["vllm"] for line in lines)  # a name in one piece
