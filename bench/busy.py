"""How long a decode step takes while other programs compute: ours, and vLLM's beside it.

    python bench/busy.py [--tree OLDER_CHECKOUT] [--vllm PYTHON --model FOLDER] [--rounds 3]

Each engine is measured with no other program running, beside one that keeps a core busy, and beside as many
as there are cores. A decode step is the difference of two calls of `generate` on the same prompts, one for
more tokens than the other, over the steps between them. Before it, the engine computes for two seconds. The
rounds go through quiet and busy in turn; the table shows medians, and how many times the engine's own quiet
step each is.

`--tree` also measures the engine of another checkout, in the same rounds. `--vllm` is the Python of an
environment with vLLM's CPU build; it is measured with each of its bindings of threads to cores: `auto`, which
leaves one core to its frontend, and one that takes all of them. The machine must be quiet before it starts.

Prints a table, and last a line of JSON: milliseconds of each measurement.
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
"""For a busy program to start."""
SETTLE_SECONDS = 2.0
"""For an engine to notice it."""
QUIET_SHARE = 0.1
"""Of a core that others may take before the first measurement."""

Generate = Callable[[int, int], None]
"""(requests, tokens each)."""


@dataclass(frozen=True)
class Contestant:
    name: str
    python: str
    kind: str
    """What the child is to start: "fgengine" or "vllm"."""
    environment: dict[str, str]


def fgengine(model: str, batch: int) -> Generate:
    from fgengine import Engine, EngineConfig, SamplingParams

    config = EngineConfig(
        model=model,
        policy="fcfs",
        max_batch_size=batch,
        max_tokens_per_batch=2048,
        num_device_blocks=4096,
        offloading="none",  # an older checkout may have another name for the size of the host pool
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
    """Answers each line on standard input with the milliseconds of a decode step, on standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the engines print belongs elsewhere
    generate = (fgengine if kind == "fgengine" else vllm)(model, batch)

    def seconds(tokens: int) -> float:
        began = time.perf_counter()
        generate(batch, tokens)
        return time.perf_counter() - began

    seconds(4)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        while time.perf_counter() - began < SETTLE_SECONDS:
            seconds(STEPS)
        short = seconds(1)
        print((seconds(1 + STEPS) - short) / STEPS * 1e3, file=answers, flush=True)


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """Meanwhile so many other processes compute without a pause."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    time.sleep(START_SECONDS)
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def measure(contestant: Contestant, loads: list[int], options: argparse.Namespace) -> dict[int, list[float]]:
    """Milliseconds of each round, by the number of busy programs."""
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
            raise SystemExit(f"{contestant.name} did not start; --verbose shows what it says")
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
    """Cores that other programs took during the next seconds."""

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
        raise SystemExit(f"other programs take {share:.2f} cores: wait until the machine is quiet")
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
        middles = {load: statistics.median(values) for load, values in found.items()}
        shown = [
            f"{middles[load]:.1f} ms" + (f", {middles[load] / middles[0]:.2f}x" if load else "")
            for load in loads
        ]
        table.add_row(contestant.name, *shown)
    Console().print(table)
    print(json.dumps({"model": options.model, "batch": options.batch, "milliseconds": everything}))


if __name__ == "__main__":
    main()
