"""How long a step takes, beside what this machine's own bandwidth and matrix rate allow.

    python bench/step.py [--model NAME_OR_FOLDER] [--device cpu|cuda] [--threads N]

Weights are dummies: a step's time does not depend on them. Prints a table, and last a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fgengine.config import EngineConfig
from fgengine.execution.runner import TorchRunner
from fgengine.model.catalog import shape_of
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
    bandwidth, rate = read_bandwidth(runner), matmul_rate(runner)
    rows = [measure(runner, "decode", b, c, options.repeats, bandwidth, rate) for b, c in DECODES]
    rows += [measure(runner, "prefill", 1, n, options.repeats, bandwidth, rate) for n in PREFILLS]
    about = {
        "model": options.model,
        "device": runner.device_name,
        "dtype": runner.dtype_name,
        "ops": runner.model.ops.name,
        "threads": options.threads,
        "torch": torch.__version__,
        "read_bytes_per_second": bandwidth,
        "matmul_flops_per_second": rate,
    }
    title = (
        f"{options.model} {runner.dtype_name} on {runner.device_name}, {runner.model.ops.name}; "
        f"reads {bandwidth / 1e9:.1f} GB/s, multiplies {rate / 1e9:.0f} GFLOP/s"
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
    runner: TorchRunner, step: str, requests: int, context: int, repeats: int, bandwidth: float, rate: float
) -> dict[str, Any]:
    """One kind of step; the floor is what its bytes or its arithmetic take at the measured rates."""
    shape, width = runner.shape, runner.dtype.itemsize
    new = context if step == "prefill" else 1
    tokens, attended = requests * new, requests * (context if new == 1 else context * (context + 1) // 2)
    head = shape.vocab_size * (shape.embed_dim or shape.hidden_size)
    # The embedding is looked up, not multiplied; a tied one is multiplied as the head.
    layers = shape.num_parameters - head * (1 if shape.tied_embeddings else 2)
    read = (layers + head) * width + requests * context * shape.kv_bytes_per_token(width)
    scores = 4 * attended * shape.num_heads * shape.head_dim * shape.num_layers
    floor = max(read / bandwidth, (2 * layers * tokens + 2 * head * requests + scores) / rate)
    plan = plan_of(runner, requests, context, new)
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


def read_bandwidth(runner: TorchRunner) -> float:
    """Bytes per second, from adding up more than any cache holds."""
    data = torch.ones(2**27, dtype=torch.float32, device=runner.device)
    return data.nbytes / best_of(runner, data.sum)


def matmul_rate(runner: TorchRunner) -> float:
    """Floating-point operations per second of a large multiplication in the model's dtype."""
    size = 8192 if runner.device.type == "cuda" else 1024
    a = torch.randn(size, size, dtype=runner.dtype, device=runner.device)
    return 2.0 * size**3 / best_of(runner, lambda: a @ a)


def best_of(runner: TorchRunner, work: Callable[[], object], repeats: int = 10) -> float:
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        if runner.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


if __name__ == "__main__":
    main()
