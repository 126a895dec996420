"""What scheduling costs: schedule() + update() of one step, by policy, batch and number waiting.

    python bench/scheduler.py [--steps N]

The steps themselves are simulated, so all the time measured is the scheduler's. Prints a table, and last a
line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

from rich.console import Console
from rich.table import Table

from fgengine.clock import VirtualClock
from fgengine.cost import CostModel
from fgengine.kv.manager import KVManager
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.draft import Limits
from fgengine.scheduling.policy import PolicyContext, make_policy, policy_names
from fgengine.scheduling.predictor import Noisy
from fgengine.scheduling.scheduler import Scheduler
from fgengine.simulation.runner import SimulatedRunner

COST = CostModel(step=0.01, prefill_token=0.0005, decode_request=0.0005)
WAITING = (100, 1_000, 10_000, 100_000)
BATCHES = (16, 256)


def microseconds(policy: str, batch: int, waiting: int, steps: int) -> float:
    """Median over ``steps`` steps, after as many to warm up."""
    clock, source = VirtualClock(), random.Random(0)
    limits = Limits(max_batch_size=batch, max_tokens_per_batch=8192, max_model_len=2048)
    context = PolicyContext(COST, max_batch_size=batch, predictor=Noisy(1.0))
    scheduler = Scheduler(make_policy(policy, context), KVManager(128 * max(WAITING), 0, 16), limits)
    for i in range(waiting + batch):
        params = SamplingParams(max_tokens=source.randint(4, 1000), temperature=0.0, ignore_eos=True)
        scheduler.add(Request.new(str(i), [0] * source.randint(4, 200), params, 0.0), 0.0)
    runner, spent = SimulatedRunner(COST, clock), []
    for _ in range(2 * steps):
        began = time.perf_counter()
        plan = scheduler.schedule(clock.now())
        planned = time.perf_counter()
        result = runner.execute(plan)
        executed = time.perf_counter()
        scheduler.update(result, clock.now())
        spent.append(planned - began + time.perf_counter() - executed)
    return statistics.median(spent[steps:]) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    rows = []
    for policy in policy_names():
        for batch in BATCHES:
            figures = {str(n): round(microseconds(policy, batch, n, steps), 1) for n in WAITING}
            rows.append({"policy": policy, "batch": batch, "microseconds": figures})
    table = Table(title="schedule() + update(), median microseconds a step")
    for name in ("policy", "batch", *(f"{n:,} waiting" for n in WAITING)):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(str(row["policy"]), str(row["batch"]), *map(str, row["microseconds"].values()))  # type: ignore[attr-defined]
    Console().print(table)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
