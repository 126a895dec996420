"""Measures how long a step takes, compared with the limit set by the machine's bandwidth and matrix rate.

    python bench/step.py [--model NAME_OR_FOLDER] [--device cpu|cuda] [--threads N]

It uses dummy weights, since a step's time does not depend on them. Prints a table, then a line of JSON.
"""

from __future__ import annotations

import argparse
import json

import torch
from rich.console import Console
from rich.table import Table
from step_times import measure

from fgengine.ceilings import measure_ceilings
from fgengine.config import EngineConfig
from fgengine.execution.create import create_runner
from fgengine.model.catalog import shape_of

DECODES = [(batch, context) for batch in (1, 4, 16) for context in (128, 512)]
PREFILLS = (128, 512, 1024)


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
        model=options.model, device=options.device, num_device_blocks=1024, swap_space=0, block_size=16
    )
    runner = create_runner(config, shape_of(options.model), None)
    runner.pool.zero_()
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
        f"memory {ceilings.bytes_per_second / 1e9:.1f} GB/s, "
        f"matrix products {ceilings.flops_per_second / 1e9:.0f} GFLOP/s"
    )
    table = Table(
        "step", "requests", "context", "median ms", "best ms", "floor ms", "median / floor", title=title
    )
    for row in rows:
        numbers = [f"{row[key] * 1e3:.2f}" for key in ("seconds", "best_seconds", "floor_seconds")]
        table.add_row(row["step"], str(row["requests"]), str(row["context"]), *numbers, f"{row['ratio']:.2f}")
    Console().print(table)
    print(json.dumps(about | {"steps": rows}))


if __name__ == "__main__":
    main()
