"""The engine's own loop over a full batch: how much of a step's time the GPU does not compute."""

from __future__ import annotations

import random
import statistics
import time as clock
from typing import Any

from fgengine.clock import WallClock
from fgengine.engine import Engine
from fgengine.execution.runner import TorchRunner
from fgengine.kv.manager import KVManager
from fgengine.request import SamplingParams
from fgengine.scheduling.policy import PolicyContext, make_policy
from fgengine.scheduling.scheduler import Scheduler
from fgengine.scheduling.step_builder import Limits
from fgengine.units import seconds
from gpu.budget import Allowance
from gpu.profiling import busy_seconds, spans_of
from gpu.report import Columns, Findings, Target
from gpu.setting import Setting

MOST_OUTSIDE = 0.05
PROFILED_STEPS = 10
SPARE_STEPS = 10

TITLE = "(d) the engine's loop"
COLUMNS: Columns = {
    "model": lambda row: row["model"],
    "requests": lambda row: str(row["requests"]),
    "planned": lambda row: "ahead" if row["overlap"] else "after",
    "step, loop and all": lambda row: seconds(row["step_seconds"]),
    "GPU busy": lambda row: seconds(row["busy_seconds"]),
    "in the runner": lambda row: seconds(row["runner_seconds"]),
    "scheduling": lambda row: seconds(row["engine_seconds"]),
    "between steps": lambda row: seconds(row["between_seconds"]),
    "outside the GPU": lambda row: f"{row['outside']:.1%}",
}


def run(setting: Setting, findings: Findings, time: Allowance, model: str) -> None:
    """As the engine runs here, then the other way: a step planned while the last one runs, or after."""
    runner = setting.runner(model)
    for overlap in (setting.on_gpu, not setting.on_gpu):
        if not time.enough_for(5.0 if setting.on_gpu else 0.0):
            findings.note("the time for this section is spent")
            return
        found = _measure(setting, runner, overlap)
        walls = found.pop("walls")
        if why := found.pop("unprofiled"):
            findings.note(f"the GPU's share is the runner's own figure, idle times and all: {why}")
        findings.row(model=model, **found)
        if overlap == setting.on_gpu:
            findings.details["step_seconds"] = walls
            what = f"{model}, {setting.scale.judged_batch} decodes: share of a step outside the GPU"
            findings.targets.append(Target(what, found["outside"], MOST_OUTSIDE, judged=setting.on_gpu))


def _measure(setting: Setting, runner: TorchRunner, overlap: bool) -> dict[str, Any]:
    """A closed run of decodes only, measured once every prompt has been computed. The GPU's share comes from
    some further steps under the profiler, which slows the loop down but not the kernels."""
    scale = setting.scale
    engine = _engine(runner, scale.judged_batch, overlap)
    rng = random.Random(0)
    params = SamplingParams(
        max_tokens=scale.loop_steps + PROFILED_STEPS + SPARE_STEPS + scale.judged_batch,
        temperature=0.0,
        ignore_eos=True,
    )
    requests = []
    for number in range(scale.judged_batch):
        prompt = [rng.randrange(runner.shape.vocab_size) for _ in range(scale.judged_context)]
        requests.append(engine.add(f"loop-{number}", prompt, params))
    while min(request.num_generated for request in requests) < 2:
        engine.step()
    before, walls = engine.stats(), []
    for _ in range(scale.loop_steps):
        began = clock.perf_counter()
        engine.step()
        walls.append(clock.perf_counter() - began)
    spent = {name: (engine.stats()[name] - before[name]) / scale.loop_steps for name in PARTS}
    wall = statistics.median(walls)
    busy, unprofiled = spent["model_seconds"], ""  # on a CPU the runner is the device
    if setting.on_gpu:
        try:
            busy = busy_seconds(spans_of(engine.step, PROFILED_STEPS, setting.device)) / PROFILED_STEPS
        except Exception as error:  # the times above are worth more than where they went
            unprofiled = f"the profiler gave nothing: {type(error).__name__}: {error}"
    for request in requests:
        engine.abort(request.id)
    while engine.has_work:
        engine.step()
    return {
        "requests": scale.judged_batch,
        "overlap": overlap,
        "step_seconds": wall,
        "busy_seconds": busy,
        "runner_seconds": spent["model_seconds"],
        "engine_seconds": spent["engine_seconds"],
        "between_seconds": spent["between_seconds"],
        "outside": max(0.0, 1.0 - busy / wall),
        "walls": walls,
        "unprofiled": unprofiled,
    }


PARTS = ("model_seconds", "engine_seconds", "between_seconds")
"""Of ``Engine.stats``."""


def _engine(runner: TorchRunner, batch: int, overlap: bool) -> Engine:
    """Over a runner that is used on: the engine is never closed."""
    scheduler = Scheduler(
        make_policy("fcfs", PolicyContext(max_batch_size=batch)),
        KVManager(runner.num_device_blocks, runner.num_host_blocks, runner.block_size),
        Limits(2048, runner.max_model_len, block_bytes=runner.block_bytes),
    )
    vocab_size = runner.shape.vocab_size
    return Engine(scheduler, runner, runner.copies, WallClock(), vocab_size=vocab_size, overlap=overlap)
