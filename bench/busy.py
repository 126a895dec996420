"""Measures how long a decode step takes while other programs compute, for FastGen and vLLM.

    python bench/busy.py [--tree OLDER_CHECKOUT] [--vllm PYTHON --model FOLDER] [--rounds 3]

Each engine is measured with no other program, with one that keeps a core busy, and with one busy program per
core. To time a decode step, `generate` is called twice on the same prompts with different numbers of tokens;
the difference is divided by the number of steps between them. Before that, the engine computes for two
seconds. Each round measures all numbers of busy programs. The table shows medians, and their ratio to the
same engine's time without busy programs.

`--tree` also measures the engine of another checkout. `--vllm` is the Python of an environment with vLLM's
CPU build. vLLM is measured with two bindings of threads to cores: `auto`, which leaves one core to its
frontend, and all cores. The machine must be idle before the start.

Prints a table, then a line of JSON with the milliseconds of each measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

PROMPT_TOKENS = 64
STEPS = 32
START_SECONDS = 0.5
"""Time for a busy program to start."""
SETTLE_SECONDS = 2.0
"""Time for an engine to adapt to the busy programs."""
QUIET_SHARE = 0.1
"""Largest share of a core that other programs may use before the first measurement."""

Generate = Callable[[int, int], None]
"""A function of (number of requests, tokens of each)."""


@dataclass(frozen=True)
class Contestant:
    """An engine to measure."""

    name: str
    python: str
    kind: str
    """The engine that the child process starts: "fgengine" or "vllm"."""
    environment: dict[str, str]


def fgengine(model: str, batch: int) -> Generate:
    from fgengine import Engine, EngineConfig, SamplingParams

    config = EngineConfig(
        model=model,
        policy="fcfs",
        max_batch_size=batch,
        max_tokens_per_batch=2048,
        num_device_blocks=4096,
        offloading="none",  # an older checkout may name the size of the host pool differently
    )
    engine = Engine.from_config(config)

    def generate(requests: int, tokens: int) -> None:
        engine.generate(
            prompts(requests), SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.0)
        )

    return generate


def vllm(model: str, batch: int) -> Generate:
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    llm = LLM(
        model,
        dtype="bfloat16",
        max_num_seqs=batch,
        max_num_batched_tokens=2048,
        max_model_len=2048,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )

    def generate(requests: int, tokens: int) -> None:
        given = [{"prompt_token_ids": prompt} for prompt in prompts(requests)]
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.0)
        llm.generate(given, params, use_tqdm=False)

    return generate


def prompts(requests: int) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(1000, 40000) for _ in range(PROMPT_TOKENS)] for _ in range(requests)]


def child(kind: str, model: str, batch: int) -> None:
    """For each line on standard input, print the milliseconds of a decode step on standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # send what the engines print to standard error
    generate = (fgengine if kind == "fgengine" else vllm)(model, batch)

    def seconds(tokens: int) -> float:
        start = time.perf_counter()
        generate(batch, tokens)
        return time.perf_counter() - start

    seconds(4)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        while time.perf_counter() - start < SETTLE_SECONDS:
            seconds(STEPS)
        short = seconds(1)
        print((seconds(1 + STEPS) - short) / STEPS * 1e3, file=answers, flush=True)


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Run ``programs`` processes that compute without a pause, for the duration of the context."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    time.sleep(START_SECONDS)
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(contestant: Contestant, loads: list[int], options: argparse.Namespace) -> dict[int, list[float]]:
    """Return the milliseconds of each round, by the number of busy programs."""
    command = [contestant.python, __file__, "--child", contestant.kind, "--model", options.model]
    process = subprocess.Popen(
        [*command, "--batch", str(options.batch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if options.verbose else subprocess.DEVNULL,
        text=True,
        env=os.environ | contestant.environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    found: dict[int, list[float]] = {load: [] for load in loads}
    try:
        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{contestant.name} did not start: use --verbose to see its output")
        for _ in range(options.rounds):
            for load in loads:
                with busy(load):
                    process.stdin.write("\n")
                    process.stdin.flush()
                    found[load].append(float(process.stdout.readline()))
                print(
                    f"{contestant.name}, {load} busy: {found[load][-1]:.1f} ms", file=sys.stderr, flush=True
                )
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return found


def others_share(seconds: float = 2.0) -> float:
    """Measure for ``seconds`` how many cores other programs use."""

    def used() -> float:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
        return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")

    before, own = used(), time.process_time()
    time.sleep(seconds)
    return (used() - before - (time.process_time() - own)) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tree", type=Path, help="an older checkout to measure too")
    parser.add_argument("--vllm", help="the Python of an environment with vLLM")
    parser.add_argument("--verbose", action="store_true", help="show what the engines print")
    parser.add_argument("--child", choices=("fgengine", "vllm"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.model, options.batch)
        return
    if (share := others_share()) > QUIET_SHARE:
        raise SystemExit(f"other programs use {share:.2f} cores: wait until the machine is idle")
    cores = os.cpu_count() or 1
    here = Path(__file__).resolve().parent.parent
    contestants = [Contestant("fgengine", sys.executable, "fgengine", {"PYTHONPATH": str(here)})]
    if options.tree is not None:
        tree = {"PYTHONPATH": str(options.tree.resolve())}
        contestants.append(Contestant(f"fgengine of {options.tree}", sys.executable, "fgengine", tree))
    if options.vllm is not None:
        settings = {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        for binding in ("auto", f"0-{cores - 1}"):
            bound = settings | {"VLLM_CPU_OMP_THREADS_BIND": binding}
            contestants.append(Contestant(f"vLLM, {binding}", options.vllm, "vllm", bound))
    loads = sorted({0, 1, cores})
    table = Table("engine", "quiet", *(f"{load} of {cores} cores busy" for load in loads if load))
    everything: dict[str, dict[int, list[float]]] = {}
    for contestant in contestants:
        found = everything[contestant.name] = measure(contestant, loads, options)
        medians = {load: statistics.median(values) for load, values in found.items()}
        cells = [
            f"{medians[load]:.1f} ms" + (f", {medians[load] / medians[0]:.2f}x" if load else "")
            for load in loads
        ]
        table.add_row(contestant.name, *cells)
    Console().print(table)
    print(json.dumps({"model": options.model, "batch": options.batch, "milliseconds": everything}))


if __name__ == "__main__":
    main()
