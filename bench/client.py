"""Measures the limit of the load generator: its lag and throughput against a server that only streams.

    python bench/client.py [--rates 500,1000,2000] [--tokens 16] [--gap 0.005]
    python bench/client.py --find                       # the highest rate with a p99 lag of at most 10 ms
    python bench/client.py --vllm-python VENV/bin/python --tokenizer FOLDER   # compare with `vllm bench
    serve`

A rate is sustained if the p99 lag is at most ``--lag`` and at least 98% of the rate was sent. With
``--concurrency``, and in the comparison with vLLM, a fixed number of requests is in flight: each worker sends
the next request when its last one has ended. The requests per second are then the client's maximum.

On Linux, the client's process is bound to one core and the server's to another. On other systems nothing is
bound, and ``one_core`` in the output is false. Prints tables, then JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from fgbench.backends.attached import Attached
from fgbench.client.endpoints import ENDPOINTS
from fgbench.client.sending import Target, run_async, run_load
from fgbench.metrics.record import RequestRecord
from fgbench.metrics.summary import Summary, summarize
from fgbench.workload.workload import RequestSpec

PROMPT_TOKENS = 64
SUSTAINED = 0.98
"""Share of a rate that must have been sent for the rate to count as sustained."""
TOLERANCE = 0.04
"""The search ends when the highest sustained rate and the lowest other rate differ by this share."""
TRIES = 3
"""A rate is not sustained if it fails this many times. On a busy machine, one try would depend on chance."""


def requests_at(rate: float, count: int, tokens: int) -> list[RequestSpec]:
    """Return requests with seeded Poisson arrivals; ``inf`` sends all at the start."""
    rng = np.random.default_rng(0)
    gaps = rng.exponential(1.0, count)
    gaps *= count / rate / gaps.sum() if math.isfinite(rate) else 0.0  # so that the rate is exact
    times = np.cumsum(gaps).tolist()
    prompt = tuple(rng.integers(1000, 30_000, PROMPT_TOKENS).tolist())
    return [RequestSpec(i, at, prompt, PROMPT_TOKENS, tokens) for i, at in enumerate(times)]


def measure(url: str, rate: float, count: int, tokens: int, concurrency: int | None = None) -> dict[str, Any]:
    """Measure one load; raises AssertionError if an answer was incomplete or some pieces were not seen."""
    records: list[RequestRecord] = []
    target = Target(url, "null", ENDPOINTS["completions"])
    more = {} if concurrency is None else {"concurrency": concurrency}
    requests = requests_at(rate, count, tokens)
    start_cpu, start = time.process_time(), time.perf_counter()
    outcome = run_async(run_load(requests, target, records.append, **more))
    cpu, wall = time.process_time() - start_cpu, time.perf_counter() - start
    if outcome == "interrupted":
        raise KeyboardInterrupt
    summary = summarize(records, offered_rate=rate)
    assert summary.ok == count, summary.errors
    seen = sum(len(record.token_times) for record in records)
    assert seen == count * tokens, f"{seen} pieces of {count * tokens}"
    return {
        "rate": rate if math.isfinite(rate) else "inf",
        "requests": count,
        "sent_per_second": _rounded(summary.achieved_rate),
        "answered_per_second": _rounded(summary.request_throughput),
        "lag_p50_ms": _milliseconds(summary, "lag", "p50"),
        "lag_p99_ms": _milliseconds(summary, "lag", "p99"),
        "ttft_from_sent_p99_ms": _milliseconds(summary, "ttft_from_sent", "p99"),
        "cpu_us_per_request": round(cpu / count * 1e6, 1),
        "cpu_share": round(cpu / wall, 3),
    }


def is_sustained(row: dict[str, Any], max_lag_ms: float) -> bool:
    return row["lag_p99_ms"] <= max_lag_ms and row["sent_per_second"] >= SUSTAINED * row["rate"]


def highest_rate(url: str, seconds: float, tokens: int, max_lag_ms: float) -> list[dict[str, Any]]:
    """Double the rate, then bisect. Return all tries; the last row is the highest sustained rate."""
    tried: list[dict[str, Any]] = []

    def sustained(rate: float) -> dict[str, Any] | None:
        for _ in range(TRIES):
            tried.append(measure(url, rate, round(rate * seconds), tokens))
            if is_sustained(tried[-1], max_lag_ms):
                return tried[-1]
        return None

    low, best, high = 0.0, None, 250.0
    while (row := sustained(high)) is not None:
        low, best, high = high, row, high * 2
    while low and high - low > TOLERANCE * low:
        middle = (low + high) / 2
        row = sustained(middle)
        if row is None:
            high = middle
        else:
            low, best = middle, row
    return [*tried, best] if best else tried


VLLM_BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""Runs ``vllm bench serve`` without vLLM's own command line, which requires a package named vllm. CPU builds
have other package names."""


def vllm_bench(
    python: Path, tokenizer: str, url: str, count: int, tokens: int, concurrency: int, core: int | None
) -> dict[str, Any]:
    """Run ``vllm bench serve`` against the same server, on the client's core.

    Raises:
        RuntimeError: vLLM is missing or failed; the message says what to do.
    """
    if not python.is_file():
        raise RuntimeError(
            f"--vllm-python: there is no {python}: give the Python of an environment with vLLM"
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(["taskset", "-c", str(core)] if core is not None else []),
            *(str(python), "-c", VLLM_BENCH_SERVE),
            *("--backend", "openai", "--base-url", url, "--endpoint", "/v1/completions"),
            *("--model", "null", "--tokenizer", tokenizer, "--dataset-name", "random"),
            *("--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(tokens)),
            *("--num-prompts", str(count), "--max-concurrency", str(concurrency), "--request-rate", "inf"),
            *("--ignore-eos", "--disable-tqdm", "--seed", "0"),
            *("--save-result", "--result-dir", folder, "--result-filename", "vllm.json"),
        ]
        env = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        result = Path(folder) / "vllm.json"
        if done.returncode != 0 or not result.is_file():
            lines = (done.stderr or done.stdout).strip().splitlines()[-5:]
            raise RuntimeError("vllm bench serve failed; its last lines are:\n  " + "\n  ".join(lines))
        data = json.loads(result.read_text())
    if data["completed"] != count:
        raise RuntimeError(f"vllm bench serve got {data['completed']} of {count} answers")
    return {
        "answered_per_second": round(data["request_throughput"], 1),
        "seconds": round(data["duration"], 2),
    }


def compare_with_vllm(options: argparse.Namespace, url: str, core: int | None) -> dict[str, Any]:
    """Measure both clients alternately, twice each, so that drift affects both."""
    count, tokens, concurrency = options.requests or 10_000, options.tokens, options.concurrency or 1024
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(2):
        row = measure(url, math.inf, count, tokens, concurrency)
        ours.append(row["answered_per_second"])
        row = vllm_bench(options.vllm_python, options.tokenizer, url, count, tokens, concurrency, core)
        theirs.append(row["answered_per_second"])
    return {
        "in_flight": concurrency,
        "fgbench_per_second": ours,
        "vllm_bench_serve_per_second": theirs,
        "ratio": round(sum(ours) / sum(theirs), 3),
    }


def bind() -> tuple[int, int] | tuple[None, None]:
    """Bind this process to one core; return it and another core for the server.

    Returns None for both if binding is impossible.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None, None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return None, None
    os.sched_setaffinity(0, {cores[0]})
    return cores[0], cores[1]


def show(title: str, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(stderr=True).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rates", default="500,1000,2000", help="requests per second, separated by commas")
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each rate")
    parser.add_argument("--requests", type=int, help="number of requests at every rate, instead of --seconds")
    parser.add_argument("--concurrency", type=int, help="requests in flight, instead of a rate")
    parser.add_argument("--tokens", type=int, default=16, help="streamed pieces of each answer")
    parser.add_argument("--gap", type=float, default=0.005, help="seconds between an answer's pieces")
    parser.add_argument("--lag", type=float, default=10.0, help="largest p99 lag of a sustained rate, ms")
    parser.add_argument("--find", action="store_true", help="search the highest sustained rate")
    parser.add_argument(
        "--vllm-python", type=Path, help="Python of an environment with vLLM, to compare with it"
    )
    parser.add_argument("--tokenizer", help="folder of a tokenizer for vllm bench serve")
    options = parser.parse_args()
    if options.vllm_python and not options.tokenizer:
        parser.error(
            "--vllm-python needs --tokenizer, with which vLLM makes its prompts: give any model's folder"
        )

    core, server_core = bind()
    command = [sys.executable, str(Path(__file__).with_name("null_server.py"))]
    command += ["--tokens", str(options.tokens), "--gap", str(options.gap)]
    command += ["--core", str(server_core)] if server_core is not None else []
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = {
        "bench": "client",
        "tokens": options.tokens,
        "gap": options.gap,
        "one_core": core is not None,
    }
    title = f"client against a null server: {options.tokens} pieces, {options.gap * 1e3:g} ms apart"
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        assert Attached(url).alive()
        measure(url, 200.0, 200, options.tokens)  # imports, first connections
        if options.vllm_python:
            try:
                result["beside_vllm"] = compare_with_vllm(options, url, core)
            except RuntimeError as error:
                sys.exit(f"client bench: {error}")
            show(title, [result["beside_vllm"]])
        elif options.find:
            rows = highest_rate(url, options.seconds, options.tokens, options.lag)
            result["rows"] = rows
            show(title + "; the last row is the highest sustained rate", rows)
        else:
            rates = [math.inf] if options.concurrency else [float(r) for r in options.rates.split(",")]
            rows = []
            for rate in rates:
                count = options.requests or (round(rate * options.seconds) if math.isfinite(rate) else 10_000)
                rows.append(measure(url, rate, count, options.tokens, options.concurrency))
            result["rows"] = rows
            show(title, rows)
    finally:
        server.kill()
        server.wait()
    print(json.dumps(result))


def _rounded(value: float | None) -> float:
    return round(value or 0.0, 1)


def _milliseconds(summary: Summary, name: str, statistic: str) -> float:
    return round((summary.figure(name, statistic) or 0.0) * 1e3, 2)


if __name__ == "__main__":
    main()
