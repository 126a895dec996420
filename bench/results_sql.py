"""Measures how long `fgbench results sql` takes over many runs, and how much memory it needs.

    python bench/results_sql.py [--runs 2000] [--requests 150] [--tokens 300]

The runs are created in a temporary folder (2 GB by default) and removed at the end. Each query runs in a
separate process. Prints a table, then a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from numpy.random import default_rng

from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import summarize
from fgbench.results.database import EXAMPLE
from fgbench.results.writer import RunWriter

RATE = 2.0
DISTINCT = 20
"""Number of runs with different requests; the others are copies with another name and seed."""
QUERIES = {
    "runs": "SELECT backend, seed, ttft_mean, jct_p99 FROM runs ORDER BY jct_p99 DESC LIMIT 5",
    "requests": EXAMPLE,
    "every token": "SELECT count(*) AS requests, sum(len(token_times)) AS tokens FROM requests",
}


def requests_of(seed: int, count: int, tokens: int) -> list[RequestRecord]:
    """Return requests with answers of ``tokens`` tokens, about 20 ms apart."""
    rng = default_rng(seed)
    records = []
    for index, scheduled in enumerate(rng.exponential(1.0 / RATE, count).cumsum()):
        gaps = rng.exponential(0.02, tokens)
        times = tuple((scheduled + 0.1 + gaps.cumsum()).round(6).tolist())
        start = round(float(scheduled), 6)
        server = {"queued": 0.05, "swapped": 0.0, "prefill": 0.05, "decode": times[-1] - times[0]}
        records.append(
            RequestRecord(
                *(index, start, start, 64, tokens, tokens, times[0], times[-1], times, times[-1]),
                server=server,
            )
        )
    return records


def write_runs(root: Path, runs: int, requests: int, tokens: int) -> None:
    distinct = [
        write_run(root, seed, requests_of(seed, requests, tokens)) for seed in range(min(runs, DISTINCT))
    ]
    for seed in range(DISTINCT, runs):
        original = distinct[seed % DISTINCT]
        folder = Path(shutil.copytree(original, root / f"{original.name}_{seed}"))
        info = json.loads((folder / "run.json").read_text())
        info["workload"]["seed"] = seed
        (folder / "run.json").write_text(json.dumps(info, indent=2))


def write_run(root: Path, seed: int, records: list[RequestRecord]) -> Path:
    workload = {"dataset": "synthetic", "num_prompts": len(records), "rate": RATE, "seed": seed}
    backend = {"name": "fastgen", "policy": "fcfs", "url": None, "settings": {}}
    info = {"backend": backend, "model": "m", "workload": workload, "environment": {}, "fingerprint": ""}
    with RunWriter(root, info) as writer:
        for record in records:
            writer.append(record)
        writer.finish("complete", records, summarize(records, offered_rate=RATE).to_dict())
    return writer.path


def ask(root: Path, query: str) -> dict[str, float]:
    """Return the seconds and the peak memory (GB) of a process that answers ``query``."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "fgbench", "results", "sql", query, "--json", "--results", str(root)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"results sql ended with exit code {process.returncode}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": round(time.perf_counter() - start, 2), "peak_gb": round(peak / 1e9, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--tokens", type=int, default=300, help="tokens of each answer")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_runs(root, chosen.runs, chosen.requests, chosen.tokens)
        lines = sum(path.stat().st_size for path in root.glob("*/requests.jsonl")) / 1e9
        print(f"{chosen.runs} runs of {chosen.requests} requests: {lines:.2f} GB of requests.jsonl")
        answers = {name: ask(root, query) for name, query in QUERIES.items()}
    for name, answer in answers.items():
        print(f"{name:12} {answer['seconds']:6.2f} s {answer['peak_gb']:6.3f} GB")
    print(json.dumps({**vars(chosen), "jsonl_gb": round(lines, 2), "queries": answers}))


if __name__ == "__main__":
    main()
