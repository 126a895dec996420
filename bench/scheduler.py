"""Measures the time of scheduling: schedule() + update() of one step, by policy, batch and waiting requests.

    python bench/scheduler.py [--steps N] [--only waiting|full]

The second table is for a full device pool: 6,000 started requests hold 30,000 blocks, and the batch is 64. So
each step must choose whose KV to offload or evict. The steps themselves are simulated, so only the
scheduler's time is measured. Prints tables, then a line of JSON.
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
from fgengine.config import Offloading
from fgengine.cost import CostModel
from fgengine.kv.manager import KVManager
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import PolicyContext, make_policy, policy_names
from fgengine.scheduling.predictor import Noisy
from fgengine.scheduling.scheduler import Scheduler
from fgengine.scheduling.step_builder import Limits
from fgengine.simulation.copying import SimulatedCopyEngine
from fgengine.simulation.runner import SimulatedRunner

COST = CostModel(step=0.01, prefill_token=0.0005, decode_request=0.0005)
WAITING = (100, 1_000, 10_000, 100_000)
BATCHES = (16, 256)


def microseconds(policy: str, batch: int, waiting: int, steps: int) -> float:
    """Return the median over ``steps`` steps, after the same number of warm-up steps."""
    clock, source = VirtualClock(), random.Random(0)
    limits = Limits(max_tokens_per_batch=8192, max_model_len=2048)
    context = PolicyContext(COST, max_batch_size=batch, predictor=Noisy(1.0))
    scheduler = Scheduler(make_policy(policy, context), KVManager(128 * max(WAITING), 0, 16), limits)
    for i in range(waiting + batch):
        params = SamplingParams(max_tokens=source.randint(4, 1000), temperature=0.0, ignore_eos=True)
        scheduler.add(Request.new(str(i), [0] * source.randint(4, 200), params, 0.0), 0.0)
    runner, spent = SimulatedRunner(COST, clock), []
    for _ in range(2 * steps):
        start = time.thread_time()
        plan = scheduler.schedule(clock.now())
        planned = time.thread_time()
        result = runner.execute(plan)
        executed = time.thread_time()
        scheduler.update(result, clock.now())
        spent.append(planned - start + time.thread_time() - executed)
    return statistics.median(spent[steps:]) * 1e6


FULL_BLOCKS, FULL_REQUESTS, FULL_BATCH = 30_000, 6_000, 64
FULL_MODES: tuple[Offloading, ...] = ("reactive", "proactive")
FULL_POLICIES = ("mlfq", "sj-mlfq")
"""Policies that start this many requests before the first ones end."""


def full_memory(policy: str, mode: Offloading, steps: int) -> dict[str, float]:
    """Return the microseconds of a step with a full device pool: median and 99th percentile.

    Requests have 16 to 144 prompt tokens, about five blocks each. The host pool has four times as many
    blocks as the device pool.
    """
    clock, source = VirtualClock(), random.Random(0)
    limits = Limits(8192, 2048, block_bytes=2**21)
    context = PolicyContext(COST, max_batch_size=FULL_BATCH, predictor=Noisy(1.0))
    kv = KVManager(FULL_BLOCKS, 4 * FULL_BLOCKS, 16)
    scheduler = Scheduler(make_policy(policy, context), kv, limits, offloading=mode, cost=COST)
    runner, copies = SimulatedRunner(COST, clock), SimulatedCopyEngine(clock, limits.block_bytes, 25e9)
    spent: list[float] = []
    added = 0
    while len(spent) < steps:
        while len(scheduler.requests) < FULL_REQUESTS + FULL_BATCH:
            params = SamplingParams(max_tokens=source.randint(100, 1000), temperature=0.0, ignore_eos=True)
            tokens = [0] * source.randint(16, 144)
            scheduler.add(Request.new(str(added), tokens, params, clock.now(), f"u{added % 7}"), clock.now())
            added += 1
        full = kv.device.num_free < FULL_BATCH
        start = time.thread_time()
        scheduler.copied(copies.done())
        plan = scheduler.schedule(clock.now())
        planned = time.thread_time()
        for transfer in (*plan.uploads, *plan.offloads):
            copies.submit(transfer)
        if not plan.items:
            scheduler.copied(copies.wait())
            continue
        result = runner.execute(plan)
        executed = time.thread_time()
        scheduler.update(result, clock.now())
        if full or spent:
            spent.append(planned - start + time.thread_time() - executed)
    quantiles = statistics.quantiles(spent, n=100)
    return {"median": round(quantiles[49] * 1e6, 1), "p99": round(quantiles[98] * 1e6, 1)}


def waiting_table(steps: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    table = Table(title="schedule() + update(), median microseconds per step")
    for name in ("policy", "batch", *(f"{n:,} waiting" for n in WAITING)):
        table.add_column(name, justify="right")
    for policy in policy_names():
        for batch in BATCHES:
            figures = {str(n): round(microseconds(policy, batch, n, steps), 1) for n in WAITING}
            rows.append({"policy": policy, "batch": batch, "microseconds": figures})
            table.add_row(policy, str(batch), *map(str, figures.values()))
    Console().print(table)
    return rows


def full_table(steps: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    title = f"the same: {FULL_REQUESTS:,} requests fill all {FULL_BLOCKS:,} blocks, batch {FULL_BATCH}"
    table = Table(title=title)
    for name in ("policy", "offloading", "median", "p99"):
        table.add_column(name, justify="right")
    for policy in FULL_POLICIES:
        for mode in FULL_MODES:
            figures = full_memory(policy, mode, steps)
            rows.append({"policy": policy, "offloading": mode, "microseconds": figures})
            table.add_row(policy, mode, *map(str, figures.values()))
    Console().print(table)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", choices=("waiting", "full"))
    chosen = parser.parse_args()
    rows = [] if chosen.only == "full" else waiting_table(chosen.steps)
    rows += [] if chosen.only == "waiting" else full_table(5 * chosen.steps)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
