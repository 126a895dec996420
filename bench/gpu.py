"""Compares the engine with the limits of a GPU: steps with their floors, KV copies, the engine's loop.

    python bench/gpu.py                                # OPT-13B, then Llama-3-8B, all sections
    python bench/gpu.py --model opt-13b --only steps   # one model, one section
    python bench/gpu.py --device cpu                   # checks the script itself, with tiny models

Sections, for each model (dummy weights, so nothing is downloaded):

    steps      decode and prefill steps with their floors; the kernels of the steps that have a target
    swapping   bandwidth of offloads, of uploads and of both at once, and how much they slow decode steps
    loop       the engine's decode steps including scheduling: the share of time when the GPU does not compute

It needs one GPU with enough memory for the model. The targets are for one H100. Each table is printed when it
is complete, and the JSON is written after each row, so a killed script loses no finished row. A failed
section is recorded, and the next one begins. A profiler may slow down its process permanently. So it is used
last for each model, and "profiled_before" marks later models. To avoid this, measure one model per process.

Exit codes: 0 done (a missed target is not a failure), 1 a section failed or there is no GPU,
2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import gc
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from device_time import busy_seconds, kernels_of, spans_of
from kv_traffic import BOTH, Traffic, bandwidth
from rich.console import Console
from rich.table import Table
from step_times import blocks_for, measure, periods, plan_of

from fgbench.results.environment import environment
from fgbench.results.files import write_json
from fgengine.ceilings import measure_ceilings
from fgengine.clock import WallClock
from fgengine.config import EngineConfig
from fgengine.engine import Engine
from fgengine.execution.create import create_runner
from fgengine.execution.runner import TorchRunner
from fgengine.kv.manager import KVManager
from fgengine.model.catalog import shape_of
from fgengine.model.shape import ModelShape
from fgengine.request import SamplingParams
from fgengine.scheduling.policy import PolicyContext, make_policy
from fgengine.scheduling.scheduler import Scheduler
from fgengine.scheduling.step_builder import Limits

VERSION = 2
RESULTS = Path(__file__).resolve().parent.parent / "results" / "gpu"

MAX_TIMES_FLOOR = 1.25
MIN_MATMUL_SHARE = 0.6
MAX_SLOWDOWN = 0.03
MAX_OUTSIDE = 0.05

PROFILED_STEPS = 8
SPARE_STEPS = 10
"""Additional output tokens of each request, so that none ends during the measurement."""

Row = dict[str, Any]


class Scale(NamedTuple):
    """Sizes that are measured. The defaults are for a GPU."""

    models: tuple[str, ...] = ("opt-13b", "llama-3-8b")
    batches: tuple[int, ...] = (1, 16, 64, 128)
    contexts: tuple[int, ...] = (512, 1024)
    prefills: tuple[int, ...] = (512, 2048)
    batch: int = 16
    context: int = 512
    prefill: int = 2048
    """Steps that have a target: a decode of ``batch`` requests at ``context``, and a prefill."""
    repeats: int = 20
    copy_rounds: int = 8
    """Rounds of decode steps without copies and then with copies."""
    copy_steps: int = 15
    """Steps of each kind in a round."""
    loop_steps: int = 100
    host_gib: float = 4.0
    """Size of the host pool in GiB. Eight requests of 512 tokens of OPT-13B take 3.4 GB."""
    device_blocks: int | None = None


TINY = Scale(
    models=("opt-tiny", "llama-tiny"),
    batches=(1, 4),
    contexts=(16, 40),
    prefills=(16, 48),
    batch=4,
    context=16,
    prefill=48,
    repeats=3,
    copy_rounds=2,
    copy_steps=3,
    loop_steps=8,
    host_gib=4 / 1024,
    device_blocks=64,
)
TINY_SHAPES = {
    "opt-tiny": ModelShape("opt", 512, 64, 256, 2, 2, 2, 32, 512, True, (2,), 2, activation="relu"),
    "llama-tiny": ModelShape("llama", 512, 64, 128, 2, 4, 2, 16, 512, False, (2,), 1),
}


class Report:
    """All measured rows. They are written to the file ``out`` (None: no file) after each row."""

    def __init__(self, device: torch.device, out: Path | None) -> None:
        self.out = out
        self.console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
        self.data: dict[str, Any] = {
            "version": VERSION,
            "bench": "gpu",
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "device": describe(device),
            "environment": environment(),
            "models": {},
            "sections": {},
            "targets": [],
            "failures": [],
        }
        self.save()

    def save(self) -> None:
        """Write the data to the file."""
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.out, self.data)

    def row(self, section: str, **row: Any) -> None:
        """Add a row to the section and save."""
        self.data["sections"].setdefault(section, []).append(row)
        self.save()

    def rows(self, section: str, model: str) -> list[Row]:
        """Return the section's rows of the model."""
        return [row for row in self.data["sections"].get(section, []) if row["model"] == model]

    def target(self, what: str, value: float, limit: float, at_most: bool = True) -> None:
        """Add a target and its result. ``met`` is None on a CPU, because the targets are for a GPU."""
        met = value <= limit if at_most else value >= limit
        judged = met if self.data["device"]["type"] == "cuda" else None
        target = {"what": what, "value": value, "limit": limit, "at_most": at_most, "met": judged}
        self.data["targets"].append(target)
        self.save()

    def print(self, sentence: str) -> None:
        """Print a sentence."""
        self.console.print(sentence, markup=False, soft_wrap=True)

    def table(self, section: str, model: str) -> None:
        """Print the rows as a table, with one column for each number or word."""
        rows = self.rows(section, model)
        keys = dict.fromkeys(key for row in rows for key in row if key != "model")
        shown = [key for key in keys if not any(isinstance(row.get(key), list | dict) for row in rows)]
        table = Table(*map(heading, shown), title=f"{model}: {section}", title_justify="left")
        for row in rows:
            table.add_row(*(cell(key, row.get(key)) for key in shown))
        if rows:
            self.console.print(table)

    @contextmanager
    def recording(self, model: str, section: str) -> Iterator[None]:
        """Record an error of the block instead of raising it."""
        try:
            yield
        except Exception as error:
            sentence = f"{type(error).__name__}: {error}"
            self.data["failures"].append({"model": model, "section": section, "error": sentence})
            self.save()
            self.print(f"{model}: {section} failed: {sentence}")


def heading(key: str) -> str:
    """Return the column heading of a row's key."""
    if key == "bytes_per_second":
        return "GB/s"
    return key.replace("seconds", "ms").replace("_", " ")


def cell(key: str, value: Any) -> str:
    """Format a value in the unit of its heading."""
    if not isinstance(value, float):
        return "-" if value is None else str(value)[:80]
    if key == "bytes_per_second":
        return f"{value / 1e9:.1f}"
    if key.endswith("seconds"):
        return f"{value * 1e3:.3f}"
    return f"{value:.2f}" if key in ("ratio", "calls") else f"{value:.1%}"


def measure_model(
    model: str, device: torch.device, scale: Scale, only: Sequence[str], report: Report
) -> None:
    """Load the model, measure the sections in ``only``, and free its memory."""
    runner = None
    with report.recording(model, "loading"):
        runner = load(model, device, scale)
    if runner is None:
        return
    report.data["models"][model] = {
        "dtype": runner.dtype_name,
        "ops": runner.model.ops.name,
        "device_blocks": runner.num_device_blocks,
        "block_size": runner.block_size,
        "block_bytes": runner.block_bytes,
        "profiled_before": not report.data["sections"].keys().isdisjoint(("loop", "kernels")),
    }
    for section in [*only, *(["kernels"] if "steps" in only else [])]:
        try:
            with report.recording(model, section):
                SECTIONS[section](runner, model, scale, report)
        finally:
            report.table(section, model)
    with report.recording(model, "freeing"):
        runner.close()


def load(model: str, device: torch.device, scale: Scale) -> TorchRunner:
    """Create the model's runner with dummy weights and a pool of random numbers."""
    config = EngineConfig(
        model=model,
        use_dummy_weights=True,
        device=device.type,
        max_batch_size=max(scale.batches),
        num_device_blocks=scale.device_blocks,
        swap_space=min(scale.host_gib, psutil.virtual_memory().available / 2 / 2**30),
    )
    runner = create_runner(config, TINY_SHAPES.get(model) or shape_of(model), None)
    runner.pool.normal_()  # zeros would use less power on a GPU, and denormals more time on a CPU
    return runner


def measure_steps(runner: TorchRunner, model: str, scale: Scale, report: Report) -> None:
    """Measure decode and prefill steps, and report the targets of the steps that have one."""
    weight_bytes = runner.shape.num_parameters * runner.dtype.itemsize
    ceilings = measure_ceilings(runner.device, runner.dtype, weight_bytes)
    read, multiply = ceilings.bytes_per_second, ceilings.flops_per_second
    report.data["models"][model] |= {"read_bytes_per_second": read, "matmul_flops_per_second": multiply}
    report.print(
        f"{model}: this device reads up to {read / 1e9:.0f} GB/s and multiplies matrices at up to "
        f"{multiply / 1e12:.3g} TFLOP/s; {runner.num_device_blocks} KV blocks"
    )
    points = [("decode", batch, context) for context in scale.contexts for batch in scale.batches]
    points += [("prefill", 1, context) for context in scale.prefills]
    for step, asked, context in points:
        requests = fitting(runner, asked, context)
        if requests < asked:  # do not share blocks between requests: they would be read from the cache
            report.print(
                f"{model}: {step} of {asked} x {context} does not fit the KV blocks, measured: {requests}"
            )
        if requests == 0:
            continue
        found = measure(runner, step, requests, context, scale.repeats, ceilings)
        report.row("steps", model=model, asked=asked, **found)
        if not has_target(scale, step, asked, context):
            continue
        if step == "prefill":
            what = f"{model}, prefill of {context} tokens: share of the matmul rate"
            report.target(what, found["matmul_share"], MIN_MATMUL_SHARE, at_most=False)
            continue
        what = f"{model}, decode of {requests} at context {context}: times its floor"
        report.target(what, found["ratio"], MAX_TIMES_FLOOR)
        if (graphs := runner.graphs) is not None:
            runner.graphs = None
            try:
                found = measure(runner, step, requests, context, scale.repeats, ceilings)
            finally:
                runner.graphs = graphs
            report.row("steps", model=model, asked=asked, **found | {"step": "decode, eager"})


def has_target(scale: Scale, step: str, requests: int, context: int) -> bool:
    """Whether there is a target for this step."""
    if step == "prefill":
        return context == scale.prefill
    return step == "decode" and (requests, context) == (scale.batch, scale.context)


def fitting(runner: TorchRunner, requests: int, context: int) -> int:
    """Return ``requests``, or the smaller number that fits in the pool.

    A smaller number is rounded down to a multiple of 8 if it is at least 8, like the sizes of CUDA graphs.
    """
    limit = runner.num_device_blocks // blocks_for(runner, context)
    return requests if limit >= requests else limit // 8 * 8 or limit


def measure_kernels(runner: TorchRunner, model: str, scale: Scale, report: Report) -> None:
    """Profile the kernels of the steps that have a target."""
    for row in report.rows("steps", model):
        step, requests, context = row["step"], row["requests"], row["context"]
        if not has_target(scale, step, row["asked"], context):
            continue
        plan = plan_of(runner, requests, context, context if step == "prefill" else 1)
        spans = spans_of(lambda plan=plan: runner.execute(plan), PROFILED_STEPS, runner.device)
        of_step = {"model": model, "step": step, "requests": requests, "context": context}
        busy = busy_seconds(spans) / PROFILED_STEPS
        for kernel in kernels_of(spans, PROFILED_STEPS):
            report.row("kernels", **of_step, busy_seconds=busy, **kernel)


def measure_copies(runner: TorchRunner, model: str, scale: Scale, report: Report) -> None:
    """Measure the bandwidth of KV copies, and how much copies in both directions slow decode steps."""
    plan = plan_of(runner, scale.batch, scale.context, 1)
    traffic = Traffic(runner, scale.context, {block for item in plan.items for block in item.blocks})
    of_transfer = {"model": model, "transfer_bytes": traffic.transfer_bytes}
    for kinds in (("offload",), ("upload",), BOTH):
        rates = bandwidth(runner.device, traffic, kinds)
        what, total = " and ".join(kinds), sum(rates.values())
        report.row("swapping", **of_transfer, what=what, bytes_per_second=total, by_direction=rates)

    def keep_copying() -> None:
        traffic.collect()
        traffic.fill()

    # Alternate, so that a drift of the speed affects both kinds of steps. Copies are submitted between two
    # launches, as by the engine.
    alone: list[float] = []
    with_copies: list[float] = []
    moved, copying_seconds = 0, 0.0
    periods(runner, plan, 3)
    for _ in range(scale.copy_rounds):
        alone += periods(runner, plan, scale.copy_steps)
        traffic.fill()
        before, began = traffic.done.total(), time.perf_counter()
        with_copies += periods(runner, plan, scale.copy_steps, keep_copying)
        traffic.collect(wait=traffic.done.total() == before)  # on a busy machine, no copy may have ended yet
        copying_seconds += time.perf_counter() - began
        moved += traffic.done.total() - before
        traffic.drain()
    decode = f"decode of {scale.batch} at context {scale.context}"
    seconds = statistics.median(alone)
    report.row("swapping", **of_transfer, what=f"{decode}, alone", seconds=seconds, samples=alone)
    slowdown = statistics.median(with_copies) / seconds - 1.0
    report.row(
        "swapping",
        **of_transfer,
        what=f"{decode}, with offloads and uploads",
        bytes_per_second=moved * traffic.transfer_bytes / copying_seconds,
        seconds=statistics.median(with_copies),
        slowdown=slowdown,
        samples=with_copies,
    )
    report.target(f"{model}, {decode}: slowdown by offloads and uploads, as a share", slowdown, MAX_SLOWDOWN)


def measure_loop(runner: TorchRunner, model: str, scale: Scale, report: Report) -> None:
    """Measure the median of the engine's decode steps, and means of the engine's own counters."""
    on_gpu = runner.device.type == "cuda"
    with decoding_engine(runner, scale) as engine:
        before, samples = engine.stats(), []
        for _ in range(scale.loop_steps):
            began = time.perf_counter()
            engine.step()
            samples.append(time.perf_counter() - began)
        after = engine.stats()
        in_runner, scheduling, between = (
            (after[name] - before[name]) / scale.loop_steps
            for name in ("model_seconds", "engine_seconds", "between_seconds")
        )
        busy = in_runner  # on a CPU the runner is the device
        if on_gpu:  # separate steps: the profiler slows down the loop, but not the kernels
            busy = busy_seconds(spans_of(engine.step, PROFILED_STEPS, runner.device)) / PROFILED_STEPS
    seconds = statistics.median(samples)
    outside = max(0.0, 1.0 - busy / seconds)
    report.row(
        "loop",
        model=model,
        requests=scale.batch,
        overlap=on_gpu,
        step_seconds=seconds,
        busy_seconds=busy,
        outside=outside,
        runner_seconds=in_runner,
        engine_seconds=scheduling,
        between_seconds=between,
        samples=samples,
    )
    report.target(f"{model}, {scale.batch} decodes: share of a step outside the GPU", outside, MAX_OUTSIDE)


@contextmanager
def decoding_engine(runner: TorchRunner, scale: Scale) -> Iterator[Engine]:
    """Provide an engine that has computed all prompts and only decodes.

    The engine is not closed, because its runner is used again.
    """
    engine = Engine(
        Scheduler(
            make_policy("fcfs", PolicyContext(max_batch_size=scale.batch)),
            KVManager(runner.num_device_blocks, runner.num_host_blocks, runner.block_size),
            Limits(2048, runner.max_model_len, block_bytes=runner.block_bytes),
        ),
        runner,
        runner.copies,
        WallClock(),
        vocab_size=runner.shape.vocab_size,
        overlap=runner.device.type == "cuda",  # as the server runs
    )
    rng = random.Random(0)
    max_tokens = scale.loop_steps + PROFILED_STEPS + SPARE_STEPS + scale.batch
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    requests = []
    for number in range(scale.batch):
        prompt = [rng.randrange(runner.shape.vocab_size) for _ in range(scale.context)]
        requests.append(engine.add(f"loop-{number}", prompt, params))
    while min(request.num_generated for request in requests) < 2:
        engine.step()
    yield engine
    for request in requests:
        engine.abort(request.id)
    while engine.has_work:
        engine.step()


SECTIONS: dict[str, Callable[[TorchRunner, str, Scale, Report], None]] = {
    "steps": measure_steps,
    "swapping": measure_copies,
    "loop": measure_loop,
    "kernels": measure_kernels,
}
CHOICES = ("steps", "swapping", "loop")


def describe(device: torch.device) -> dict[str, Any]:
    """Describe the GPU and its driver, or the number of CPU threads (the environment has the CPU's name)."""
    if device.type != "cuda":
        return {"type": "cpu", "threads": torch.get_num_threads()}
    gpu = torch.cuda.get_device_properties(device)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver: list[str] = []
    with suppress(OSError):  # a container may lack nvidia-smi
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    return {
        "type": "cuda",
        "name": gpu.name,
        "memory_bytes": gpu.total_memory,
        "compute_capability": f"{gpu.major}.{gpu.minor}",
        "driver": next(iter(driver), None),
        "cuda": torch.version.cuda,
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        action="append",
        help="catalog name or Hugging Face folder; repeat the option for several models",
    )
    parser.add_argument(
        "--only",
        type=sections,
        default=CHOICES,
        metavar="SECTION,...",
        help="sections to measure, of " + ", ".join(CHOICES),
    )
    parser.add_argument("--out", type=Path, help="JSON file; default on a GPU: results/gpu/TIME_DEVICE.json")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    return parser.parse_args(argv)


def sections(text: str) -> list[str]:
    """Parse the value of ``--only``."""
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in CHOICES]:
        raise argparse.ArgumentTypeError(
            f"there is no section {unknown[0]!r}: choose from {', '.join(CHOICES)}"
        )
    return [name for name in CHOICES if name in chosen]


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        print(
            "torch finds no CUDA device: use a machine with a GPU, or check the script with --device cpu",
            file=sys.stderr,
        )
        return 1
    device, scale, out = torch.device(options.device), Scale() if on_gpu else TINY, options.out
    if out is None and on_gpu:
        name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
        out = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}_{name}.json"
    report = Report(device, out)
    try:
        for model in options.model or scale.models:
            measure_model(model, device, scale, options.only, report)
            gc.collect()
            if on_gpu:
                torch.cuda.empty_cache()  # two models do not fit at the same time
    except KeyboardInterrupt:
        report.print("interrupted" if out is None else f"interrupted: the finished rows are in {out}")
        return 130
    verdicts = {None: "not judged on a CPU", True: "met", False: "MISSED"}
    for target in report.data["targets"]:
        sign = "at most" if target["at_most"] else "at least"
        report.print(
            f"{verdicts[target['met']]}: {target['what']} {target['value']:.3g} ({sign} {target['limit']:g})"
        )
    if out is not None:
        report.print(f"written: {out}")
    return int(bool(report.data["failures"]))


if __name__ == "__main__":
    sys.exit(main())
