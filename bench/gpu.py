"""How near the engine comes to what a GPU can do: steps beside their floors, swapping, the engine's loop.

    python bench/gpu.py                                # OPT-13B, then Llama-3-8B, all sections
    python bench/gpu.py --model opt-13b --only steps   # one model, one section
    python bench/gpu.py --device cpu                   # tries the script itself, with tiny models

Sections, for each model (dummy weights, so nothing is downloaded):

    steps      decode and prefill steps beside their floors, and the kernels of the judged steps by time
    swapping   bandwidth of KV copies each way and both ways, and how much they slow decode steps down
    loop       the engine's decode steps, scheduler and all: in what share of them the GPU does not compute

It needs one GPU with room for the model; the targets are for one H100. A table is printed once it is done,
and the JSON is written after each row, so a killed script loses nothing that was finished. What fails is
recorded, and the rest goes on. A profiler may slow its process down from then on: it is used last for each
model, and "profiled_before" marks the models behind it. To avoid that, measure one model a process.

Exit codes: 0 done (a missed target is a figure, not a failure), 1 something failed or there is no GPU,
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
"""More than are measured, so that no request ends meanwhile."""

Row = dict[str, Any]


class Scale(NamedTuple):
    """What is measured; the defaults are for a GPU."""

    models: tuple[str, ...] = ("opt-13b", "llama-3-8b")
    batches: tuple[int, ...] = (1, 16, 64, 128)
    contexts: tuple[int, ...] = (512, 1024)
    prefills: tuple[int, ...] = (512, 2048)
    batch: int = 16
    context: int = 512
    prefill: int = 2048
    """The points that targets are for: a decode of ``batch`` requests at ``context``, a prefill."""
    repeats: int = 20
    swap_rounds: int = 8
    """Times that decoding alone and decoding while swapping take turns."""
    swap_steps: int = 15
    """Steps in a turn."""
    loop_steps: int = 100
    swap_gib: float = 4.0
    """Host pool: eight requests of 512 tokens of OPT-13B take 3.4 GB."""
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
    swap_rounds=2,
    swap_steps=3,
    loop_steps=8,
    swap_gib=4 / 1024,
    device_blocks=64,
)
TINY_SHAPES = {
    "opt-tiny": ModelShape("opt", 512, 64, 256, 2, 2, 2, 32, 512, True, (2,), 2, activation="relu"),
    "llama-tiny": ModelShape("llama", 512, 64, 128, 2, 4, 2, 16, 512, False, (2,), 1),
}


class Report:
    """All that was measured, in the file (None: in none) after each row."""

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
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.out, self.data)

    def row(self, section: str, **row: Any) -> None:
        self.data["sections"].setdefault(section, []).append(row)
        self.save()

    def rows(self, section: str, model: str) -> list[Row]:
        return [row for row in self.data["sections"].get(section, []) if row["model"] == model]

    def target(self, what: str, value: float, limit: float, at_most: bool = True) -> None:
        """``met`` is None on a CPU, which the targets are not for."""
        met = value <= limit if at_most else value >= limit
        judged = met if self.data["device"]["type"] == "cuda" else None
        target = {"what": what, "value": value, "limit": limit, "at_most": at_most, "met": judged}
        self.data["targets"].append(target)
        self.save()

    def say(self, sentence: str) -> None:
        self.console.print(sentence, markup=False, soft_wrap=True)

    def table(self, section: str, model: str) -> None:
        """A column for each number or word of the rows."""
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
        """An error within is recorded, and what comes behind goes on."""
        try:
            yield
        except Exception as error:
            sentence = f"{type(error).__name__}: {error}"
            self.data["failures"].append({"model": model, "section": section, "error": sentence})
            self.save()
            self.say(f"{model}: {section} failed: {sentence}")


def heading(key: str) -> str:
    if key == "bytes_per_second":
        return "GB/s"
    return key.replace("seconds", "ms").replace("_", " ")


def cell(key: str, value: Any) -> str:
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
    config = EngineConfig(
        model=model,
        use_dummy_weights=True,
        device=device.type,
        max_batch_size=max(scale.batches),
        num_device_blocks=scale.device_blocks,
        swap_space=min(scale.swap_gib, psutil.virtual_memory().available / 2 / 2**30),
    )
    runner = create_runner(config, TINY_SHAPES.get(model) or shape_of(model), None)
    runner.pool.normal_()  # zeros would cost a GPU less power, and denormals a CPU more time
    return runner


def measure_steps(runner: TorchRunner, model: str, scale: Scale, report: Report) -> None:
    weight_bytes = runner.shape.num_parameters * runner.dtype.itemsize
    ceilings = measure_ceilings(runner.device, runner.dtype, weight_bytes)
    read, multiply = ceilings.bytes_per_second, ceilings.flops_per_second
    report.data["models"][model] |= {"read_bytes_per_second": read, "matmul_flops_per_second": multiply}
    report.say(
        f"{model}: at best this device reads {read / 1e9:.0f} GB/s and multiplies matrices at "
        f"{multiply / 1e12:.3g} TFLOP/s; {runner.num_device_blocks} KV blocks"
    )
    points = [("decode", batch, context) for context in scale.contexts for batch in scale.batches]
    points += [("prefill", 1, context) for context in scale.prefills]
    for step, asked, context in points:
        requests = fitting(runner, asked, context)
        if requests < asked:  # requests that share blocks would be read from the cache
            report.say(f"{model}: {step} of {asked} x {context} does not fit the KV blocks: {requests} do")
        if requests == 0:
            continue
        found = measure(runner, step, requests, context, scale.repeats, ceilings)
        report.row("steps", model=model, asked=asked, **found)
        if not is_judged(scale, step, asked, context):
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


def is_judged(scale: Scale, step: str, requests: int, context: int) -> bool:
    if step == "prefill":
        return context == scale.prefill
    return step == "decode" and (requests, context) == (scale.batch, scale.context)


def fitting(runner: TorchRunner, requests: int, context: int) -> int:
    """As many as the pool holds, cut to a multiple of 8 as the engine's graphs are, if there are 8."""
    most = runner.num_device_blocks // blocks_for(runner, context)
    return requests if most >= requests else most // 8 * 8 or most


def measure_kernels(runner: TorchRunner, model: str, scale: Scale, report: Report) -> None:
    """Of the judged steps, under the profiler."""
    for row in report.rows("steps", model):
        step, requests, context = row["step"], row["requests"], row["context"]
        if not is_judged(scale, step, row["asked"], context):
            continue
        plan = plan_of(runner, requests, context, context if step == "prefill" else 1)
        spans = spans_of(lambda plan=plan: runner.execute(plan), PROFILED_STEPS, runner.device)
        of_step = {"model": model, "step": step, "requests": requests, "context": context}
        busy = busy_seconds(spans) / PROFILED_STEPS
        for kernel in kernels_of(spans, PROFILED_STEPS):
            report.row("kernels", **of_step, busy_seconds=busy, **kernel)


def measure_swapping(runner: TorchRunner, model: str, scale: Scale, report: Report) -> None:
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

    # In turns, so that what drifts touches both. Copies are submitted between two launches, as by the engine.
    alone: list[float] = []
    beside: list[float] = []
    moved, copying_seconds = 0, 0.0
    periods(runner, plan, 3)
    for _ in range(scale.swap_rounds):
        alone += periods(runner, plan, scale.swap_steps)
        traffic.fill()
        before, began = traffic.done.total(), time.perf_counter()
        beside += periods(runner, plan, scale.swap_steps, keep_copying)
        traffic.collect(wait=traffic.done.total() == before)  # on a busy machine none may have ended yet
        copying_seconds += time.perf_counter() - began
        moved += traffic.done.total() - before
        traffic.drain()
    decode = f"decode of {scale.batch} at context {scale.context}"
    seconds = statistics.median(alone)
    report.row("swapping", **of_transfer, what=f"{decode}, alone", seconds=seconds, samples=alone)
    slowdown = statistics.median(beside) / seconds - 1.0
    report.row(
        "swapping",
        **of_transfer,
        what=f"{decode}, swapping both ways",
        bytes_per_second=moved * traffic.transfer_bytes / copying_seconds,
        seconds=statistics.median(beside),
        slowdown=slowdown,
        samples=beside,
    )
    report.target(f"{model}, {decode}: slowed by swapping both ways, as a share", slowdown, MAX_SLOWDOWN)


def measure_loop(runner: TorchRunner, model: str, scale: Scale, report: Report) -> None:
    """The median of decode steps, and means of the engine's own account of them."""
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
        if on_gpu:  # steps of their own: the profiler slows the loop down, but not the kernels
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
    """An engine that has computed every prompt and only decodes; not closed, as the runner is used on."""
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
    "swapping": measure_swapping,
    "loop": measure_loop,
    "kernels": measure_kernels,
}
CHOICES = ("steps", "swapping", "loop")


def describe(device: torch.device) -> dict[str, Any]:
    """The GPU and its driver; of a CPU its threads (its name is in the environment)."""
    if device.type != "cuda":
        return {"type": "cpu", "threads": torch.get_num_threads()}
    gpu = torch.cuda.get_device_properties(device)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver: list[str] = []
    with suppress(OSError):  # a container may lack it
        driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return {
        "type": "cuda",
        "name": gpu.name,
        "memory_bytes": gpu.total_memory,
        "compute_capability": f"{gpu.major}.{gpu.minor}",
        "driver": next(iter(driver), None),
        "cuda": torch.version.cuda,
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", action="append", help="a catalog name or a Hugging Face folder; once for each model"
    )
    parser.add_argument(
        "--only", type=sections, default=CHOICES, metavar="SECTION,...", help="of " + ", ".join(CHOICES)
    )
    parser.add_argument(
        "--out", type=Path, help="file for the JSON; default on a GPU: results/gpu/TIME_DEVICE.json"
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    return parser.parse_args(argv)


def sections(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in CHOICES]:
        raise argparse.ArgumentTypeError(f"there is no section {unknown[0]!r}, only {', '.join(CHOICES)}")
    return [name for name in CHOICES if name in chosen]


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        print("torch finds no CUDA device here; --device cpu tries the script itself", file=sys.stderr)
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
                torch.cuda.empty_cache()  # two models do not fit at a time
    except KeyboardInterrupt:
        report.say("interrupted" if out is None else f"interrupted; what was measured is in {out}")
        return 130
    verdicts = {None: "not judged here", True: "met", False: "MISSED"}
    for target in report.data["targets"]:
        sign = "at most" if target["at_most"] else "at least"
        report.say(
            f"{verdicts[target['met']]}: {target['what']} {target['value']:.3g} ({sign} {target['limit']:g})"
        )
    if out is not None:
        report.say(f"written: {out}")
    return int(bool(report.data["failures"]))


if __name__ == "__main__":
    sys.exit(main())
