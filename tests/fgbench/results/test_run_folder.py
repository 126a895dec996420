import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest

import fgbench
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import summarize
from fgbench.results.database import Database
from fgbench.results.run import VERSION, find_runs, pack, read_info, read_run, stored_summary, summary_of
from fgbench.results.writer import RunWriter
from fgbench.spec.files import fingerprint
from fgengine.files import named_errors

INFO = {
    "backend": {"name": "fastgen-my.module:Policy", "policy": "x", "url": None, "settings": {}},
    "model": "m",
    "workload": {"dataset": "synthetic-4x8", "num_prompts": 3, "rate": 2.5, "seed": 7},
    "fingerprint": "f",
    "environment": {},
}


def record(index, **kwargs):
    base = {"scheduled": 0.5, "sent": 0.5001, "prompt_tokens": 4, "asked_tokens": 8}
    return RequestRecord(index=index, **{**base, **kwargs})


GOOD = record(1, output_tokens=8, first_token=0.6, last_token=0.9, token_times=(0.6, 0.9), finished=0.9)
BAD = record(0, error="http 500: no", finished=1.0, server={"queued": 0.25})


def test_a_run_is_read_as_it_was_written(tmp_path):
    summary = summarize([GOOD, BAD], offered_rate=2.5).to_dict()
    with RunWriter(tmp_path, INFO) as writer:
        assert read_run(writer.path).status == "incomplete"
        writer.append(GOOD)
        writer.append(BAD)
        writer.finish("complete", [GOOD, BAD], summary)
    run = read_run(writer.path)
    assert run.complete
    assert run.records == (GOOD, BAD)
    assert run.info["summary"] == summary
    assert run.info["version"] == VERSION
    assert run.info["duration_s"] >= 0
    assert run.info["started"] <= run.info["ended"]
    assert run.fingerprint == "f"
    assert writer.path.name.endswith("_fastgen-my.module-Policy_synthetic-4x8_r2.5_s7")
    assert not list(writer.path.glob(".*"))  # no temporary file remains


def test_the_parquet_file_has_the_same_records(tmp_path):
    with RunWriter(tmp_path, INFO) as writer:
        writer.finish("complete", [GOOD, BAD], None)
    rows = pq.read_table(writer.path / "requests.parquet").to_pylist()
    assert [row["index"] for row in rows] == [0, 1]
    assert rows[0]["error"] == "http 500: no"
    assert dict(rows[0]["server"]) == {"queued": 0.25}
    assert msgspec.convert(rows[1] | {"server": None}, RequestRecord) == GOOD


def test_a_run_killed_in_the_middle_of_a_line_has_the_other_lines(tmp_path):
    writer = RunWriter(tmp_path, INFO)
    writer.append(GOOD)
    line = json.dumps(BAD.to_dict()).encode()
    for cut in range(1, len(line)):
        with (writer.path / "requests.jsonl").open("wb") as file:
            file.write(json.dumps(GOOD.to_dict()).encode() + b"\n" + line[:cut])
        run = read_run(writer.path)
        assert run.records == (GOOD,)
        assert run.status == "incomplete"


def test_other_damage_is_an_error(tmp_path):
    writer = RunWriter(tmp_path, INFO)
    (writer.path / "requests.jsonl").write_text('{"index": \n' + json.dumps(GOOD.to_dict()) + "\n")
    with pytest.raises(ValueError, match="line 1 is damaged"):
        read_run(writer.path)
    (writer.path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_run(writer.path)
    (writer.path / "run.json").write_text(json.dumps({"version": VERSION + 1}))
    with pytest.raises(ValueError, match="newer fgbench"):
        read_run(writer.path)
    with pytest.raises(ValueError, match="not a run folder"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("no luck"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_an_exception_is_recorded_in_run_json(tmp_path, error, status):
    writer = RunWriter(tmp_path, INFO)

    def write():
        with writer:
            writer.append(GOOD)
            raise error

    with pytest.raises(type(error)):
        write()
    run = read_run(writer.path)
    assert run.status == status
    assert run.records == (GOOD,)
    assert run.info["error"] == (str(error) or "KeyboardInterrupt")


def test_runs_of_the_same_second_have_separate_folders(tmp_path):
    paths = [RunWriter(tmp_path, INFO).path for _ in range(3)]
    assert len(set(paths)) == 3
    (tmp_path / "not a run").mkdir()
    assert set(find_runs(tmp_path)) == set(paths)
    assert find_runs(tmp_path / "absent") == []


def test_a_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint(a=1, b={"x": 1, "y": 2}) == fingerprint(b={"y": 2, "x": 1}, a=1)
    assert fingerprint(a=1, b={"x": 1}) != fingerprint(a=1, b={"x": 2})


def test_runs_of_sweeps_are_sorted_by_time_with_the_others(tmp_path):
    def folder(*parts):
        path = tmp_path.joinpath(*parts)
        path.mkdir(parents=True)
        (path / "run.json").write_text("{}")
        return path

    first, last = folder("20260101-000001_a"), folder("20260103-000001_c")
    sweep = tmp_path / "20260102-000000_sweep"
    between = folder(sweep.name, "20260102-000001_b")
    folder("20260102-000000_other", "20260102-000001_x")  # in no sweep
    assert find_runs(tmp_path) == [first, last]
    (sweep / "sweep.json").write_text("{}")
    assert find_runs(tmp_path) == [first, between, last]
    assert find_runs(sweep) == [between]


def test_a_packed_run_reads_as_before_and_is_small(tmp_path):
    times = tuple(round(0.6 + 0.0213 * n + 1e-6 * (n * n % 97), 6) for n in range(400))
    long = record(
        2, output_tokens=400, first_token=0.6, last_token=times[-1], token_times=times, finished=9.5
    )
    with RunWriter(tmp_path, INFO) as writer:
        for each in (GOOD, BAD, long):
            writer.append(each)
        writer.log_path.write_text("server log")
        writer.finish("complete", [GOOD, BAD, long], summarize([GOOD, BAD, long], offered_rate=2.5).to_dict())
    before, runs = read_run(writer.path), fgbench.runs(writer.path)
    saved = pack(writer.path)
    assert saved > 3000
    assert sorted(file.name for file in writer.path.iterdir()) == ["requests.parquet", "run.json"]
    after = read_run(writer.path)
    assert (after.records, after.info) == (before.records, before.info)
    assert fgbench.runs(writer.path).equals(runs)
    frame = fgbench.load_runs(writer.path)
    assert [tuple(one) for one in frame["token_times"]] == [BAD.token_times, GOOD.token_times, times]
    with Database(tmp_path) as database:
        assert database.ask("SELECT max(list_max(token_times)) FROM requests").rows == [(times[-1],)]
    pack(writer.path)  # once more is no harm
    assert read_run(writer.path).records == before.records


def test_a_run_packed_without_token_times_keeps_all_figures_but_the_itl(tmp_path):
    times = tuple(round(0.6 + 0.0213 * n + 1e-6 * (n * n % 97), 6) for n in range(400))
    long = record(
        2, output_tokens=400, first_token=0.6, last_token=times[-1], token_times=times, finished=9.5
    )
    with RunWriter(tmp_path, INFO) as writer:
        writer.append(long)
        writer.finish("complete", [long], summarize([long], offered_rate=2.5).to_dict())
    before, saved = read_run(writer.path), pack(writer.path)
    assert pack(writer.path, token_times=False) > 100
    after = read_run(writer.path)
    assert after.records == (replace(long, token_times=()),)
    assert after.info == {**before.info, "token_times": False}, "the summary keeps the ITL"
    assert before.info["summary"]["itl"]["mean"] > 0
    assert saved > 0


def test_times_finer_than_microseconds_are_packed_as_they_are(tmp_path):
    fine = record(0, output_tokens=3, first_token=1 / 3, token_times=(1 / 3, 2 / 3, 0.7), finished=0.7)
    with RunWriter(tmp_path, INFO) as writer:
        writer.append(fine)
        writer.finish("complete", [fine], summarize([fine], offered_rate=2.5).to_dict())
    pack(writer.path)
    assert read_run(writer.path).records == (fine,)


def test_only_complete_runs_are_packed(tmp_path):
    with RunWriter(tmp_path, INFO) as writer:
        writer.append(GOOD)
        writer.finish("interrupted", [GOOD], None)
    with pytest.raises(ValueError, match="is interrupted: only complete runs are packed"):
        pack(writer.path)
    assert (writer.path / "requests.jsonl").exists()


def test_a_complete_run_is_complete_even_if_its_table_cannot_be_written(tmp_path, monkeypatch):
    """The table can be made again from requests.jsonl."""

    def full(path, records):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fgbench.results.writer.write_table", full)
    with RunWriter(tmp_path, INFO) as writer:
        writer.append(GOOD)
        problem = writer.finish("complete", [GOOD], summarize([GOOD], offered_rate=2.5).to_dict())
    assert "requests.parquet could not be written (No space left on device)" in problem
    run = read_run(writer.path)
    assert run.complete
    assert run.records == (GOOD,)
    assert [file.name for file in writer.path.iterdir() if file.name.startswith(".")] == []


def test_a_run_packed_without_token_times_keeps_its_marks(tmp_path):
    """Tokens that arrived four at a time, which only the times of single tokens show."""
    times = tuple(0.2 * (i // 4 + 1) for i in range(16))
    records = [
        RequestRecord(
            i, 1.0 * i, 1.0 * i, 8, 16, 16, i + 0.2, i + 0.8, tuple(i + t for t in times), finished=i + 1.0
        )
        for i in range(30)
    ]
    with RunWriter(tmp_path, INFO | {"workload": INFO["workload"] | {"rate": 1.0}}) as writer:
        for one in records:
            writer.append(one)
        writer.finish("complete", records, summarize(records, offered_rate=1.0).to_dict())
    before = summary_of(read_run(writer.path))
    pack(writer.path, token_times=False)
    after = summary_of(read_run(writer.path))
    assert after.tokens_per_moment == before.tokens_per_moment == 4.0
    assert (after.overloaded, after.shortfall) == (before.overloaded, before.shortfall) == (False, 0.0)
    assert stored_summary(writer.path, read_info(writer.path)).overloaded is False


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_the_error_of_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """A failed write has no file name, so a user would not know which disk is full."""
    full = tmp_path / "run.json"
    with (
        pytest.raises(OSError, match="No space left") as caught,
        named_errors(full),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert caught.value.filename == str(full)
