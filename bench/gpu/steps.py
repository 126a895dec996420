"""How long steps of each model take beside their floors, and where the time of the judged ones goes."""

from __future__ import annotations

from typing import Any

from fgengine.execution.runner import TorchRunner
from fgengine.units import seconds
from gpu.budget import Allowance
from gpu.profiling import breakdown, lines_of
from gpu.report import Columns, Findings, Target
from gpu.setting import Setting
from gpu.step_times import blocks_for, measure, plan_of

MOST_TIMES_FLOOR = 1.25
LEAST_MATMUL_SHARE = 0.6
PROFILED_STEPS = 5
POINT_SECONDS = 3.0
"""A point is not begun with less left: OPT-13B's longest step is about 30 ms, and 23 of them are run."""

TITLE = "(b) steps"
COLUMNS: Columns = {
    "model": lambda row: row["model"],
    "step": lambda row: row["step"],
    "requests": lambda row: (
        str(row["requests"])
        if row["asked"] == row["requests"]
        else (f"{row['requests']} (of {row['asked']})")
    ),
    "context": lambda row: str(row["context"]),
    "median": lambda row: seconds(row["seconds"]),
    "best": lambda row: seconds(row["best_seconds"]),
    "alone": lambda row: seconds(row["alone_seconds"]),
    "floor": lambda row: seconds(row["floor_seconds"]),
    "median / floor": lambda row: f"{row['ratio']:.2f}",
    "of matmul rate": lambda row: f"{row['matmul_share']:.0%}",
    "bound by": lambda row: row["bound_by"],
}


def run(setting: Setting, findings: Findings, time: Allowance, model: str) -> None:
    runner = setting.runner(model)
    ceilings = setting.ceilings(runner)
    findings.details |= _about(runner)
    findings.details["read_bytes_per_second"] = ceilings.bytes_per_second
    findings.details["matmul_flops_per_second"] = ceilings.flops_per_second
    findings.note(
        f"{model} {runner.dtype_name}, {runner.model.ops.name}; here memory is read at "
        f"{ceilings.bytes_per_second / 1e9:.0f} GB/s, matrices multiplied at "
        f"{ceilings.flops_per_second / 1e12:.3g} TFLOP/s at best; {runner.num_device_blocks} KV blocks"
    )
    for step, asked, context in _points(setting):
        judged = is_judged(setting, step, asked, context)
        if not time.enough_for(POINT_SECONDS if setting.on_gpu else 0.0):
            findings.note(f"the time for this section is spent: left out {step} of {asked} x {context} on")
            break
        requests = fitting(runner, asked, context)
        if requests == 0:
            findings.note(f"{step} of {asked} x {context}: not even one request fits the pool")
            continue
        if requests < asked:
            findings.note(
                f"{step} of {asked} x {context} does not fit the pool of {runner.num_device_blocks} blocks: "
                f"measured with {requests}, the most that do (sharing blocks would have the cache serve them)"
            )
        found = measure(runner, step, requests, context, setting.scale.repeats, ceilings)
        findings.row(model=model, asked=asked, **found)
        if judged:
            findings.targets.append(_target(setting, model, found))
        if judged and step == "decode" and (graphs := runner.graphs) is not None:
            runner.graphs = None
            found = measure(runner, step, requests, context, setting.scale.repeats, ceilings)
            findings.row(model=model, asked=asked, **found | {"step": "decode, eager"})
            runner.graphs = graphs


def explain(setting: Setting, findings: Findings, time: Allowance, model: str) -> None:
    """Where the judged steps' time goes. Comes after all that is timed: a profiler that was used once may go
    on slowing the process down."""
    runner = setting.runner(model)
    for row in list(findings.rows):
        if not is_judged(setting, row["step"], row["asked"], row["context"]):
            continue
        if not time.enough_for(POINT_SECONDS if setting.on_gpu else 0.0):
            findings.note("the time for this part is spent: kernels are not listed")
            return
        _show_kernels(setting, findings, runner, row, _target(setting, model, row))


def _points(setting: Setting) -> list[tuple[str, int, int]]:
    """The judged ones first, should time run short."""
    scale = setting.scale
    points = [("decode", batch, context) for context in scale.contexts for batch in scale.batches]
    points += [("prefill", 1, context) for context in scale.prefills]
    return sorted(points, key=lambda point: not is_judged(setting, *point))


def is_judged(setting: Setting, step: str, requests: int, context: int) -> bool:
    scale = setting.scale
    if step == "prefill":
        return context == scale.judged_prefill
    return step == "decode" and (requests, context) == (scale.judged_batch, scale.judged_context)


def fitting(runner: TorchRunner, requests: int, context: int) -> int:
    """As many as the pool holds, cut to a multiple of 8 as the engine's graphs are, if there are 8."""
    most = runner.num_device_blocks // blocks_for(runner, context)
    if most >= requests:
        return requests
    return most // 8 * 8 or most


def _target(setting: Setting, model: str, found: dict[str, Any]) -> Target:
    requests, context = found["requests"], found["context"]
    if found["step"] == "decode":
        what = f"{model}, decode of {requests} at context {context}: times its floor"
        return Target(what, found["ratio"], MOST_TIMES_FLOOR, judged=setting.on_gpu)
    what = f"{model}, prefill of {context} tokens: share of the matmul rate"
    share = found["matmul_share"]
    return Target(what, share, LEAST_MATMUL_SHARE, at_most=False, judged=setting.on_gpu)


def _show_kernels(
    setting: Setting, findings: Findings, runner: TorchRunner, found: dict[str, Any], target: Target
) -> None:
    step, requests, context = found["step"], found["requests"], found["context"]
    plan = plan_of(runner, requests, context, context if step == "prefill" else 1)
    try:
        where = breakdown(lambda: runner.execute(plan), PROFILED_STEPS, runner.device)
    except Exception as error:  # the times above are worth more than where they went
        findings.note(f"the profiler gave nothing: {type(error).__name__}: {error}")
        return
    findings.details[found["model"]][f"{step} {requests} x {context}"] = where
    busy = where["busy_seconds"]
    findings.note(f"{step} of {requests} x {context}: the device is busy for {seconds(busy)} of it")
    if target.met is False or setting.profile_every_step:
        findings.notes += lines_of(where)


def _about(runner: TorchRunner) -> dict[str, Any]:
    return {
        "dtype": runner.dtype_name,
        "ops": runner.model.ops.name,
        "device_blocks": runner.num_device_blocks,
        "block_size": runner.block_size,
        "block_bytes": runner.block_bytes,
    }
