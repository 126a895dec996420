"""Is the engine right on this GPU? One command for whoever has one at hand; minutes.

    python bench/gpu_check.py [--device cuda|cpu] [--steps MODEL ...]

Logits against the plain path on the CPU, tokens under preemption and swapping against each request alone, KV
bit for bit through the copy engine, and copy bandwidth each way. ``--steps opt-13b llama-3-8b`` goes on with
bench/step.py for those models. Prints a table, and last a line of JSON; exits with 1 when anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fgengine.clock import WallClock
from fgengine.cost import CostModel
from fgengine.engine import Engine
from fgengine.execution.runner import TorchRunner
from fgengine.kv.manager import KVManager
from fgengine.kv.transfer import Transfer
from fgengine.model.loader import load
from fgengine.model.shape import ModelShape
from fgengine.ops.reference import TorchOps
from fgengine.ops.select import ops_for
from fgengine.plan import PlanItem, StepPlan
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.draft import Limits
from fgengine.scheduling.policy import PolicyContext, make_policy
from fgengine.scheduling.scheduler import Scheduler

SHAPES = {
    "llama, head size 64, 3 to 1": ModelShape("llama", 512, 384, 768, 4, 6, 2, 64, 1024, False),
    "llama, head size 128": ModelShape("llama", 512, 512, 768, 4, 4, 4, 128, 1024, True),
    "opt, head size 80": ModelShape("opt", 512, 320, 768, 4, 4, 4, 80, 1024, True, activation="relu"),
}
CPU = torch.device("cpu")
COST = CostModel(step=0.001, prefill_token=1e-5, decode_request=1e-4)
GREEDY = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
TOLERANCE = 2e-3


def runner_on(device: torch.device, shape: ModelShape, blocks: int) -> TorchRunner:
    """The same float32 weights on every device: drawn on the CPU, then copied."""
    drawn = load(shape, None, CPU, torch.float32, 3)
    for name, weights in drawn.named_parameters():
        if "norm" not in name and "embedding" not in name:
            weights.data.mul_(8)  # else every token predicts itself
    model = load(shape, None, device, torch.float32, 3)
    model.load_state_dict(drawn.state_dict())
    model.ops = ops_for(device, torch.float32)
    return TorchRunner(
        model, block_size=16, num_device_blocks=blocks, num_host_blocks=blocks, max_model_len=1024
    )


def prompts() -> list[list[int]]:
    source = random.Random(1)
    return [[source.randrange(512) for _ in range(n)] for n in (1, 15, 16, 17, 64, 200, 333)]


def logits_are_right(device: torch.device, shape: ModelShape) -> str:
    """The largest difference to the CPU's plain path over a ragged step of whole prompts."""
    items, taken = [], 0
    for i, prompt in enumerate(prompts()):
        blocks = list(range(taken, taken + -(-len(prompt) // 16)))
        taken += len(blocks)
        items.append(PlanItem(Request.new(str(i), prompt, GREEDY, 0.0), 0, len(prompt), blocks, True))
    there, here = runner_on(device, shape, taken), runner_on(CPU, shape, taken)
    here.model.ops = TorchOps()
    plan = StepPlan(0, items)
    difference = (there.logits(plan, everywhere=True).cpu() - here.logits(plan, everywhere=True)).abs().max()
    if not difference <= TOLERANCE:
        raise AssertionError(f"logits differ by {difference:.2g}")
    return f"largest difference {difference:.2g}"


def tokens_survive_pressure(device: torch.device, shape: ModelShape) -> str:
    def serve(policy: str, blocks: int, together: bool) -> tuple[list[list[int]], dict[str, int]]:
        runner = runner_on(device, shape, blocks)
        scheduler = Scheduler(
            make_policy(policy, PolicyContext(COST, starvation_limit=0.02)),
            KVManager(blocks, blocks, 16),
            Limits(max_batch_size=4, max_tokens_per_batch=256, max_model_len=1024),
        )
        engine = Engine(scheduler, runner, runner.copies, WallClock(), vocab_size=512)
        groups = [prompts()] if together else [[prompt] for prompt in prompts()]
        tokens = [request.tokens for group in groups for request in engine.generate(group, GREEDY)]
        engine.close()
        return tokens, engine.stats()

    alone, _ = serve("fcfs", 60, together=False)
    moved = 0
    for policy in ("fcfs", "mlfq", "sj-mlfq", "srpt"):
        tokens, stats = serve(policy, 30, together=True)
        if tokens != alone:
            raise AssertionError(f"{policy} changed the tokens")
        moved += stats["offloaded_blocks"]
    if moved == 0:
        raise AssertionError("nothing was swapped: the check checked nothing")
    return f"equal under 4 policies, {moved} blocks swapped out"


def kv_survives_copies(device: torch.device, shape: ModelShape) -> str:
    """Bit for bit, there and back; and how fast."""
    blocks = 2000
    runner = runner_on(device, shape, blocks)
    runner.pool.normal_()
    kept = runner.pool[: blocks // 2].clone()
    out = Transfer(0, "a", "offload", range(blocks // 2), range(blocks // 2 - 1, -1, -1))
    back = Transfer(1, "a", "upload", range(blocks // 2 - 1, -1, -1), range(blocks // 2, blocks))
    rates = []
    for transfer in (out, back):
        began = time.perf_counter()
        runner.copies.submit(transfer)
        while not runner.copies.wait():
            pass
        rates.append(blocks // 2 * runner.block_bytes / (time.perf_counter() - began) / 1e9)
    if not torch.equal(runner.pool[blocks // 2 :], kept):
        raise AssertionError("the KV came back changed")
    runner.close()
    return f"out {rates[0]:.1f} GB/s, back {rates[1]:.1f} GB/s"


def judge(
    work: Callable[[torch.device, ModelShape], str], device: torch.device, shape: ModelShape
) -> tuple[str, str]:
    try:
        return "right", work(device, shape)
    except (AssertionError, RuntimeError) as error:
        return "WRONG", str(error)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--steps", nargs="*", default=[], metavar="MODEL")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no CUDA device here; --device cpu tries the script itself")
    device = torch.device(options.device)
    checks: dict[str, Callable[[torch.device, ModelShape], str]] = {
        "logits": logits_are_right,
        "tokens under pressure": tokens_survive_pressure,
        "KV through copies": kv_survives_copies,
    }
    rows = [
        (name, check, *judge(work, device, shape))
        for name, shape in SHAPES.items()
        for check, work in checks.items()
    ]
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    table = Table("model", "check", "", "", title=f"{where}, torch {torch.__version__}")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    print(json.dumps({"device": where, "torch": torch.__version__, "checks": rows}))
    bench = [sys.executable, str(Path(__file__).with_name("step.py")), "--device", device.type]
    codes = [subprocess.run([*bench, "--model", model], check=False).returncode for model in options.steps]
    sys.exit(any(row[2] == "WRONG" for row in rows) or any(codes))


if __name__ == "__main__":
    main()
