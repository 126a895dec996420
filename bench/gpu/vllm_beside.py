"""vLLM beside it, where it is installed: the same model with dummy weights, a full batch of decodes, and the
very load that our servers got at the middle rate."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from fgbench.backends.backend import BackendError
from fgbench.backends.probe import wait_until_ready
from fgbench.backends.started import ServerProcess, free_port
from fgbench.results.run import find_runs
from fgengine.model.catalog import shape_of
from fgengine.model.store import tokenizer_folder
from fgengine.units import number, seconds
from gpu.budget import Allowance
from gpu.report import Columns, Findings
from gpu.serving import BATCH_SIZE, DRAIN_SECONDS, STOP_SECONDS, row_of, run_within
from gpu.setting import Setting, hf_config_of

NAME = "vllm"
COMPILED_SECONDS = 150.0
"""With less left it is started with --enforce-eager: compiling and capturing take a minute or two."""
EAGER_SECONDS = 75.0
"""With less left it is not started at all: importing, loading and profiling take most of a minute."""
BURST_OUTPUT = 64
BURST_SECONDS = 20.0

TITLE = "(e) vLLM beside it"
COLUMNS: Columns = {
    "server": lambda row: row["backend"],
    "load": lambda row: row["load"],
    "requests": lambda row: f"{row['ok']} of {row['requests']}",
    "median ITL": lambda row: seconds(row["itl"]["p50"] if row["itl"] else None),
    "mean JCT / token": lambda row: seconds(row["normalized_latency"]["mean"]),
    "its p95": lambda row: seconds(row["normalized_latency"]["p95"]),
    "mean TTFT": lambda row: seconds(row["ttft"]["mean"]),
    "tokens/s": lambda row: number(row["output_token_throughput"]),
}


def installed() -> list[str] | None:
    """How to start its server here; None where it is not installed."""
    if command := shutil.which("vllm"):
        return [command, "serve"]
    if importlib.util.find_spec("vllm") is not None:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    return None


def run(setting: Setting, findings: Findings, time: Allowance, model: str, served: Findings | None) -> None:
    """``served``: what our servers' section found, whose load is repeated."""
    start = installed()
    if start is None:
        findings.skip("vLLM is not installed here: there is no vllm command and no module of the name")
        return
    if setting.on_gpu and not time.enough_for(EAGER_SECONDS):
        findings.skip(f"vLLM is installed, but {time.left:.0f} s are too few to start and measure it")
        return
    eager = setting.on_gpu and not time.enough_for(COMPILED_SECONDS)
    port = free_port()
    command = [*start, *server_arguments(setting, model, port, eager)]
    findings.details |= {"command": shlex.join(command), "eager": eager}
    server = ServerProcess(command, setting.folder / "vllm.log")
    try:
        url = f"http://127.0.0.1:{port}"
        try:
            ready_within = max(1.0, time.left - BURST_SECONDS - STOP_SECONDS)
            wait_until_ready(url, timeout=ready_within, report=lambda _: None, alive=server.alive)
        except BackendError as error:
            raise RuntimeError(f"{error}; its log ends:\n{server.tail()}") from None
        _measure(setting, findings, time, url, served)
    finally:
        server.stop()
    findings.note(
        f"vLLM {'with --enforce-eager, for want of time' if eager else 'with its CUDA graphs'}; the burst's "
        "median ITL is a decode step as a client sees it, with HTTP on top of what section (b) measures"
    )


def server_arguments(setting: Setting, model: str, port: int, eager: bool) -> list[str]:
    return [
        *(str(model_folder(setting, model)), "--load-format", "dummy", "--port", str(port)),
        *("--host", "127.0.0.1", "--max-num-seqs", str(BATCH_SIZE), "--max-model-len", "2048"),
        *("--gpu-memory-utilization", "0.9", "--no-enable-prefix-caching"),
        *(["--enforce-eager"] if eager else []),
    ]


def model_folder(setting: Setting, model: str) -> Path:
    """A Hugging Face folder of the model's shape, with our tokenizer and no weights."""
    path = setting.path_of(model)
    shape = shape_of(path)
    folder = setting.folder / "models" / f"{NAME}-{model}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config_of(shape), indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_folder(path, dummy_weights=True) / name, folder / name)
    return folder


def _measure(
    setting: Setting, findings: Findings, time: Allowance, url: str, served: Findings | None
) -> None:
    context = setting.scale.judged_context
    burst = [
        *("--rate", "inf", "--num-prompts", str(BATCH_SIZE), "--dataset", "synthetic"),
        *("--input-len", str(context), "--output-len", str(BURST_OUTPUT)),
    ]
    _load(setting, findings, url, f"{BATCH_SIZE} x {context} at once", burst, time.left - STOP_SECONDS)
    rates = sorted({row["rate"] for row in served.rows}) if served is not None else []
    if not rates or served is None:
        findings.note("our own servers were not measured, so there is no load to repeat")
        return
    rate, duration = rates[len(rates) // 2], served.details["load_seconds"]
    drain = DRAIN_SECONDS if setting.on_gpu else 0.0
    if not time.enough_for(duration + drain + STOP_SECONDS):
        findings.note(f"the time for this section is spent: left out {rate:.3g} requests/s")
        return
    load = ["--rate", f"{rate:g}", "--duration", f"{duration:.3g}", *setting.scale.dataset]
    _load(setting, findings, url, f"{rate:.3g} requests/s", load, time.left - STOP_SECONDS)
    for row in served.rows:
        if row["rate"] == rate:
            findings.row(**row, load=f"{rate:.3g} requests/s")


def _load(
    setting: Setting, findings: Findings, url: str, load: str, options: list[str], allowed: float
) -> None:
    results = setting.folder / NAME
    results.mkdir(exist_ok=True)
    known = set(find_runs(results))
    command = [
        *(sys.executable, "-m", "fgbench", "run", "--backend", NAME, "--url", url),
        *("--results", str(results), *options),
    ]
    words = run_within(command, setting.folder / f"{NAME}-client.log", allowed)
    rows: list[dict[str, Any]] = [
        row for folder in find_runs(results) if folder not in known and (row := row_of(folder)) is not None
    ]
    if not rows:
        raise RuntimeError(f"{load}: nothing was measured; {words}")
    findings.row(**rows[-1] | {"load": load})
