"""A run killed at any moment: its finished requests are saved and listed, and other commands still work."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fgbench.cli.main import app
from fgbench.metrics.record import RequestRecord
from fgbench.results.database import Database
from fgbench.results.run import find_runs, is_being_written, read_run
from fgbench.results.writer import RunWriter

KILLS = 15
SEED = 7
INFO = {
    "backend": {"name": "fastgen", "policy": "x", "url": None, "settings": {}},
    "model": "m",
    "workload": {
        "dataset": "synthetic",
        "num_prompts": 800,
        "rate": 2.5,
        "seed": 7,
        "arrivals": "poisson",
        "prompts_fingerprint": "p",
    },
    "environment": {},
}
WRITERS = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_killed import INFO, record
from fgbench.results.writer import RunWriter
import pyarrow.parquet  # before the timer starts
records = [record(i) for i in range(800)]
for name in sys.stdin:
    writer_process = os.fork()
    if writer_process == 0:
        for round in range(1000):
            with RunWriter(Path(sys.argv[1]), INFO | {"fingerprint": f"{name.strip()} {round}"}) as writer:
                os.write(1, f"run {writer.path.name}\\n".encode())
                for k in records:
                    writer.append(k)
                    os.write(1, b"saved %d\\n" % k.index)
                writer.finish("complete", records, None)
    os.write(1, f"writer {writer_process}\\n".encode())
    os.waitpid(writer_process, 0)
    os.write(1, b"\\ndead\\n")
"""
"""A process that, for each line it reads, forks a process that writes runs, and waits until that ends."""


def record(index: int) -> RequestRecord:
    at, times = index * 0.01, tuple(index * 0.01 + 0.001 * k for k in range(1, 9))
    return RequestRecord(
        index, at, at, 4, 8, 8, times[0], times[-1], times, times[-1], server={"queued": 0.5}
    )


def write_until_killed(writers: subprocess.Popen[bytes], seconds: float, since: str) -> dict[str, int]:
    """Return, for each run, the number of requests that the writer reported as saved.

    The writer is killed ``seconds`` after its start (``since="writer"``) or its first run folder
    (``since="run"``).
    """
    assert writers.stdin is not None
    assert writers.stdout is not None
    writers.stdin.write(b"again\n")
    writers.stdin.flush()
    saved: dict[str, int] = {}
    run, pid, timed = "", 0, False
    while (line := writers.stdout.readline()) != b"dead\n":
        assert line
        word, _, rest = line.decode().strip().partition(" ")
        if word == "writer":
            pid = int(rest)
        elif word == "run":
            run = rest
            saved[run] = 0
        elif word == "saved":
            saved[run] += 1
        if not timed and pid and (since == "writer" or saved):
            timed = True
            threading.Timer(seconds, os.kill, (pid, signal.SIGKILL)).start()
    return saved


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_no_finished_request(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    saved: dict[str, int] = {}
    command = [sys.executable, "-c", WRITERS, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writers:
        for n in range(KILLS):
            saved |= write_until_killed(writers, rng.uniform(0.0, 0.1), "writer" if n % 5 == 0 else "run")
    assert len(saved) >= KILLS - KILLS // 5  # the others may have had no folder yet
    folders = {path.name: path for path in find_runs(tmp_path)}
    killed = incomplete = 0
    for name, count in saved.items():
        run = read_run(folders[name])
        assert len(run.records) >= count, name
        assert run.records == tuple(record(i) for i in range(len(run.records)))
        assert run.status in ("incomplete", "complete")
        without_table = not (run.path / "requests.parquet").exists()  # it is written last
        incomplete += run.status == "incomplete"
        killed += run.status == "incomplete" or without_table
        assert not is_being_written(run.path)
    assert killed >= KILLS // 2

    listed = CliRunner().invoke(app, ["results", "list", "--results", str(tmp_path), "--json"])
    assert listed.exit_code == 0, listed.output
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert rows.keys() == folders.keys()
    assert sum(row["status"] == "incomplete" for row in rows.values()) >= incomplete
    compared = CliRunner().invoke(app, ["compare", "--results", str(tmp_path), "--json"])
    assert compared.exit_code in (0, 2), compared.output  # 2: only one run had a request
    with Database(tmp_path) as database:
        counted = dict(database.ask("SELECT run, count(*) FROM requests GROUP BY run").rows)
    assert all(counted.get(name, 0) >= count for name, count in saved.items())


@pytest.mark.slow
def test_a_file_cut_at_any_byte_loses_only_the_request_at_the_cut(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, INFO)
    for i in range(2):
        writer.append(record(i))
    data = (writer.path / "requests.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    for size in range(len(data) + 1):
        os.truncate(writer.path / "requests.jsonl", size) if size < len(data) else None
        records = read_run(writer.path).records
        complete = sum(end - 1 <= size for end in ends)  # the last newline may be missing
        assert records == tuple(record(i) for i in range(complete))
        (writer.path / "requests.jsonl").write_bytes(data)


def test_a_run_counts_as_being_written_until_its_writer_ends(tmp_path: Path) -> None:
    with RunWriter(tmp_path, INFO) as writer:
        assert is_being_written(writer.path)
        writer.append(record(0))
        writer.finish("complete", [record(0)], None)
        assert not is_being_written(writer.path)
    shutil.rmtree(writer.path)
    assert not is_being_written(writer.path)


def test_a_partial_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter(tmp_path, INFO)
    real = writer._requests

    class Slow:
        def write(self, data: bytes) -> int:
            return real.write(data[:7])

    monkeypatch.setattr(writer, "_requests", Slow())
    writer.append(record(0))
    writer.append(record(1))
    assert read_run(writer.path).records == (record(0), record(1))
