"""How long a step takes, beside what this machine's own bandwidth and matrix rate allow.

    python bench/step.py [--model NAME_OR_FOLDER] [--device cpu|cuda] [--threads N]

Weights are dummies: a step's time does not depend on them. Prints a table, and last a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fgengine.ceilings import measure_ceilings
from fgengine.config import EngineConfig
from fgengine.execution.runner import TorchRunner
from fgengine.model.catalog import shape_of
from fgengine.physics import Ceilings, floor_of
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request, SamplingParams

DECODES = [(batch, context) for batch in (1, 4, 16) for context in (128, 512)]
PREFILLS = (128, 512, 1024)
PARAMS = SamplingParams(max_tokens=1, temperature=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = EngineConfig(
        model=options.model, device=options.device, num_device_blocks=1024, swap_space_bytes=0, block_size=16
    )
    runner = TorchRunner.create(config, shape_of(options.model), None)
    ceilings = measure_ceilings(
        runner.device, runner.dtype, runner.shape.num_parameters * runner.dtype.itemsize
    )
    rows = [measure(runner, "decode", b, c, options.repeats, ceilings) for b, c in DECODES]
    rows += [measure(runner, "prefill", 1, n, options.repeats, ceilings) for n in PREFILLS]
    about = {
        "model": options.model,
        "device": runner.device_name,
        "dtype": runner.dtype_name,
        "ops": runner.model.ops.name,
        "threads": options.threads,
        "torch": torch.__version__,
        "read_bytes_per_second": ceilings.bytes_per_second,
        "matmul_flops_per_second": ceilings.flops_per_second,
    }
    title = (
        f"{options.model} {runner.dtype_name} on {runner.device_name}, {runner.model.ops.name}; "
        f"reads {ceilings.bytes_per_second / 1e9:.1f} GB/s, "
        f"multiplies {ceilings.flops_per_second / 1e9:.0f} GFLOP/s"
    )
    table = Table(
        "step", "requests", "context", "median ms", "best ms", "floor ms", "median / floor", title=title
    )
    for row in rows:
        numbers = [f"{row[key] * 1e3:.2f}" for key in ("seconds", "best_seconds", "floor_seconds")]
        table.add_row(row["step"], str(row["requests"]), str(row["context"]), *numbers, f"{row['ratio']:.2f}")
    Console().print(table)
    print(json.dumps(about | {"steps": rows}))


def measure(
    runner: TorchRunner, step: str, requests: int, context: int, repeats: int, ceilings: Ceilings
) -> dict[str, Any]:
    """One kind of step; the floor is what its bytes or its arithmetic take at the measured rates."""
    plan = plan_of(runner, requests, context, context if step == "prefill" else 1)
    items = [(item.start, item.num_tokens) for item in plan.items]
    floor = floor_of(items, runner.shape, runner.dtype.itemsize, ceilings).seconds
    runner.execute(plan)
    seconds = [runner.execute(plan).seconds for _ in range(repeats)]
    median = statistics.median(seconds)
    return {
        "step": step,
        "requests": requests,
        "context": context,
        "seconds": median,
        "best_seconds": min(seconds),
        "floor_seconds": floor,
        "ratio": median / floor,
    }


def plan_of(runner: TorchRunner, requests: int, context: int, new: int) -> StepPlan:
    """Requests of random tokens on scattered blocks, the last ``new`` tokens of each to be computed."""
    rng = random.Random(0)
    runner.pool.zero_()
    need = -(-context // runner.block_size)
    free = rng.sample(range(runner.num_device_blocks), requests * need)
    items = []
    for n in range(requests):
        tokens = [rng.randrange(runner.shape.vocab_size) for _ in range(context)]
        request = Request.new(str(n), tokens, PARAMS, 0.0)
        items.append(PlanItem(request, context - new, new, free[n * need : (n + 1) * need], True))
    return StepPlan(0, items)


if __name__ == "__main__":
    main()
