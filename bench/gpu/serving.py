"""sj-mlfq against fcfs with the paper's settings, each a real server under the same load at three rates."""

from __future__ import annotations

import shlex
import sys
import time as clock
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from fgbench.backends.started import ServerProcess
from fgbench.metrics.summary import Summary
from fgbench.results.run import find_runs, read_info
from fgbench.sweeping.estimate import capacity, sampled_lengths
from fgbench.sweeping.folder import find_sweeps
from fgbench.workload.reading import load_dataset
from fgengine.cost import CostModel
from fgengine.profile import Profile
from fgengine.units import number, seconds, size
from gpu.budget import Allowance
from gpu.report import Columns, Findings
from gpu.setting import Setting

BATCH_SIZE = 16
LOADS = (0.7, 1.0, 1.3)
"""Shares of the capacity that the profile predicts."""
BACKENDS = ("fastgen-fcfs", "fastgen --offloading proactive")
"""The paper's two: FCFS, and skip-join MLFQ with proactive swapping."""
START_SECONDS = 30.0
"""A server: Python, torch and CUDA twice 6 s, weights 3 s, pinning 32 GiB of swap space some 10 s, graphs for
five batch sizes 3 s. Kernels were compiled and cached by the sections before."""
DRAIN_SECONDS = 17.0
"""Until the last answers are there, on average over the rates: a request alone takes up to 10 s (900 tokens
at 11 ms); at 1.3 times the capacity 40 s of load leave 12 s of backlog."""
POLL_SECONDS = 0.2
STOP_SECONDS = 20.0
"""Kept back for ending a sweep that ran out of time: ``ServerProcess.stop`` asks twice before it kills."""

TITLE = "(d) served: the same requests under two policies"
COLUMNS: Columns = {
    "server": lambda row: row["backend"],
    "rate": lambda row: f"{row['rate']:.3g}/s{' ▲' if row['overloaded'] else ''}",
    "requests": lambda row: f"{row['ok']} of {row['requests']}",
    "mean JCT / token": lambda row: seconds(row["normalized_latency"]["mean"]),
    "its p95": lambda row: seconds(row["normalized_latency"]["p95"]),
    "mean TTFT": lambda row: seconds(row["ttft"]["mean"]),
    "mean JCT": lambda row: seconds(row["jct"]["mean"]),
    "TPOT": lambda row: seconds(row["tpot"]["mean"] if row["tpot"] else None),
    "tokens/s": lambda row: number(row["output_token_throughput"]),
    "preemptions": lambda row: number(row["server_totals"].get("preemptions")),
    "KV moved": lambda row: size(row["server_totals"].get("bytes_moved", 0.0)),
}


def load_seconds(setting: Setting, left: float) -> float:
    """How long each of the loads may last, in the time that is left for all of it."""
    points = len(BACKENDS) * len(LOADS)
    start, drain = (START_SECONDS, DRAIN_SECONDS) if setting.on_gpu else (0.0, 0.0)
    fair = (left - STOP_SECONDS - len(BACKENDS) * start) / points - drain
    return min(setting.scale.most_load_seconds, fair)


def run(setting: Setting, findings: Findings, time: Allowance, model: str) -> None:
    scale = setting.scale
    profile = Profile.load(setting.profile_path)
    duration = load_seconds(setting, time.left)
    if duration < scale.least_load_seconds:
        findings.skip(
            f"{time.left:.0f} s are left, enough for loads of {max(duration, 0.0):.0f} s: too short"
        )
        return
    rates = scale.rates or _rates(profile.cost)
    findings.details |= {"profile": asdict(profile), "load_seconds": duration}
    command = [
        *(sys.executable, "-m", "fgbench", "sweep"),
        *(part for backend in BACKENDS for part in ("--backend", backend)),
        *("--rates", ",".join(f"{rate:g}" for rate in rates)),
        *("--duration", f"{duration:.3g}", "--results", str(setting.folder)),
        *server_options(setting, model),
        *("--profile", str(setting.profile_path)),
        *scale.dataset,
    ]
    findings.details["command"] = shlex.join(command)
    known = set(find_sweeps(setting.folder))
    words = run_within(command, setting.folder / "sweep.log", time.left - STOP_SECONDS)
    folders = [folder for folder in find_sweeps(setting.folder) if folder not in known]
    for folder in find_runs(folders[0]) if folders else ():
        if (row := row_of(folder)) is not None:
            findings.row(**row)
    expected = len(BACKENDS) * len(rates)
    if len(findings.rows) < expected:
        findings.note(f"{len(findings.rows)} of {expected} loads were measured; {words}")
    if not findings.rows:
        raise RuntimeError(f"nothing was measured; {words}")
    findings.note(
        f"{duration:.3g} s of load each, batches of {BATCH_SIZE}; ▲ above capacity: such means hang on the "
        "number of requests"
    )


def server_options(setting: Setting, model: str) -> list[str]:
    """The paper's: batches of 16, 2048 tokens a step, blocks of 16, 0.9 of the memory, swap space of 32 GiB
    (or the third of what the host has available)."""
    third = psutil.virtual_memory().available / 3 / 1024**3
    memory = ["--swap-space", f"{min(setting.scale.serving_swap_gib, third):.3g}"]
    if setting.scale.device_blocks is not None:
        memory += ["--num-device-blocks", str(setting.scale.device_blocks)]
    return [
        *("--model", setting.path_of(model), "--use-dummy-weights", "--device", setting.device.type),
        *("--max-batch-size", str(BATCH_SIZE), "--max-tokens-per-batch", "2048", "--block-size", "16"),
        *memory,
    ]


def run_within(command: Sequence[str], log: Path, allowed: float) -> str:
    """Runs it to its end, or stops it (as Ctrl-C does, so that what it has is kept) when the time is up; in a
    sentence how it ended."""
    ends = clock.monotonic() + allowed
    process = ServerProcess(command, log)
    try:
        while process.alive() and clock.monotonic() < ends:
            clock.sleep(POLL_SECONDS)
        if process.alive():
            return f"stopped after {allowed:.0f} s, when its time was up"
        status = process.exit_status
    finally:
        process.stop()
    if status in (0, 4):  # 4: the client was the limit; its tables say so
        return "it ended well"
    return f"exit status {status}; its log ends:\n{process.tail()}"


def row_of(folder: Path) -> dict[str, Any] | None:
    """A measured run's figures; None of one that did not end."""
    try:
        info = read_info(folder)
        summary = Summary.from_dict(info["summary"] or {})
    except (ValueError, KeyError):
        return None
    if info.get("status") != "complete" or summary.ok == 0:
        return None
    names = ("normalized_latency", "ttft", "jct", "tpot", "itl", "lag")
    found = {name: summary.distributions.get(name) for name in names}
    figures = {name: None if one is None else one.to_dict() for name, one in found.items()}
    return {
        "backend": info["backend"]["name"],
        "settings": info["backend"]["settings"],
        "rate": summary.offered_rate,
        "requests": summary.requests,
        "ok": summary.ok,
        "overloaded": summary.overloaded,
        "request_throughput": summary.request_throughput,
        "output_token_throughput": summary.output_token_throughput,
        "server_totals": summary.server_totals,
        "fingerprint": info.get("workload", {}).get("fingerprint"),
        "run": folder.name,
        **({} if summary.failed == 0 else {"right": False, "errors": summary.errors}),
        **figures,
    }


def _rates(cost: CostModel) -> tuple[float, ...]:
    lengths = sampled_lengths(load_dataset("sharegpt-lengths"), 0)
    full = capacity(cost, lengths, BATCH_SIZE)
    return tuple(float(f"{full * share:.3g}") for share in LOADS)
