"""Simulates a long overload with full KV memory, for each policy.

    python bench/overload.py [--requests 5000] [--loads 0.9,1.5,2,10] [--policies all] [--modes all]
        [--device-blocks 400,4000] [--host-gib 0,2] [--jobs 2] [--markdown FILE]
    python bench/overload.py --burst

Each case serves requests with ShareGPT lengths at ``load`` times the capacity that the profile predicts. It
is compared with fcfs with the same pools and mode: the makespan should be at most 1.03 times that of fcfs,
and at most 5% of the computed tokens should be recomputed.

``--burst`` sends 500 requests at 0.8 of the capacity, then 2,500 at 1.5, then 8,000 at 0.8. It compares the
mean JCT of the last 2,000 requests, which shows whether the server recovers as fast as with fcfs.

Prints one line of JSON per case to standard output, and a table to standard error at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any, get_args

from numpy.random import default_rng
from rich.console import Console
from rich.table import Table

from fgbench.workload.reading import load_dataset
from fgengine.config import EngineConfig, Offloading
from fgengine.model.catalog import shape_of
from fgengine.profile import Profile
from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import policy_names
from fgengine.simulation.setup import make_cluster

REFERENCE = Path(__file__).parent.parent / "results/reference/overload/profile.json"
BURST = ((500, 0.8), (2500, 1.5), (8000, 0.8))
"""Number of requests and load of each part."""
JUDGED = 2000
"""Number of the last requests that are compared in a burst."""
MAX_MAKESPAN, MAX_RECOMPUTED = 1.03, 0.05


@dataclass(frozen=True)
class Case:
    """One simulation."""

    policy: str
    mode: Offloading
    load: float
    requests: int
    device_blocks: int
    host_gib: float
    seed: int = 0
    burst: bool = False
    link: float | None = None
    """Bytes per second between the pools; None: the profile's."""

    @property
    def pools(self) -> tuple[Any, ...]:
        """The values that a case shares with the fcfs case that it is compared with."""
        return (self.mode, self.load, self.requests, self.device_blocks, self.host_gib, self.seed, self.burst)


@cache
def profile() -> Profile:
    return Profile.load(REFERENCE)


@cache
def lengths(requests: int, seed: int) -> tuple[tuple[int, int], ...]:
    samples = islice(load_dataset("sharegpt-lengths").samples(default_rng(seed)), requests)
    return tuple((sample.prompt_tokens, sample.output_tokens) for sample in samples)


def arrivals(case: Case, batch: int) -> Iterator[Request]:
    """Yield requests with Poisson arrivals, the same for every policy, mode and pool."""
    cost = profile().cost
    sizes = lengths(case.requests, case.seed)
    capacity = len(sizes) / sum(cost.share_seconds(prompt, output, batch) for prompt, output in sizes)
    parts = BURST if case.burst else ((case.requests, case.load),)
    gaps = default_rng(case.seed + 1).exponential(size=case.requests)
    loads = (load for count, load in parts for _ in range(count))
    at = 0.0
    for index, ((prompt, output), gap, load) in enumerate(zip(sizes, gaps, loads, strict=True)):
        at += float(gap) / (load * capacity)
        params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        yield Request(str(index), prompt, params, at, bytearray(prompt), f"u{index % 7}", phase_since=at)


def simulate(case: Case) -> dict[str, Any]:
    """Return the case's fields, and its results as seconds, ratios and shares."""
    config = EngineConfig(
        policy=case.policy,
        offloading=case.mode,
        num_device_blocks=case.device_blocks,
        swap_space=case.host_gib,
        predictor="noisy:1.7",
        max_queue=0,
        max_queue_tokens=0,
    )
    used = profile()
    if case.link is not None:
        used = replace(used, cost=replace(used.cost, copy_bytes_per_second=case.link))
    cluster = make_cluster(config, shape_of(config.model), used)
    start = time.perf_counter()
    done = [ending.request for ending in cluster.serve(arrivals(case, config.max_batch_size))]
    counters = cluster.replicas[0].scheduler.counters
    computed = sum(r.prompt_len + r.num_generated for r in done) + counters.recomputed_tokens
    jcts = {int(r.id): r.phase_since - r.arrival for r in done}
    judged = (
        [jct for index, jct in jcts.items() if index >= case.requests - JUDGED]
        if case.burst
        else jcts.values()
    )
    return asdict(case) | {
        "makespan": max(r.phase_since for r in done),
        "finished": sum(r.finish_reason == "length" for r in done),
        "jct": mean(judged),
        "jct_per_token": mean(jcts[int(r.id)] / r.num_generated for r in done if r.num_generated),
        "ttft": mean(r.first_token_at - r.arrival for r in done if r.first_token_at is not None),
        "thrown_away": counters.recomputed_tokens / computed,
        "offloaded_blocks": counters.offloaded_blocks,
        "uploaded_blocks": counters.uploaded_blocks,
        "pressure_seconds": counters.pressure_seconds,
        "wall": time.perf_counter() - start,
    }


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else math.nan


def attempt(case: Case) -> dict[str, Any]:
    """Simulate a case; an exception becomes a row with ``error``, so that the other cases still run."""
    try:
        return simulate(case)
    except Exception as error:
        return asdict(case) | {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--loads", default="0.9,1.5,2,10")
    parser.add_argument("--policies", default="all")
    parser.add_argument("--modes", default="all")
    parser.add_argument("--device-blocks", default="400,4000")
    parser.add_argument("--host-gib", default="0,2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--link", type=float, help="bytes per second between the pools")
    parser.add_argument("--burst", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    policies = policy_names() if chosen.policies == "all" else chosen.policies.split(",")
    modes = get_args(Offloading) if chosen.modes == "all" else chosen.modes.split(",")
    loads = [0.0] if chosen.burst else [float(load) for load in chosen.loads.split(",")]
    requests = sum(count for count, _ in BURST) if chosen.burst else chosen.requests
    pools = product(
        loads, map(int, chosen.device_blocks.split(",")), map(float, chosen.host_gib.split(",")), modes
    )
    cases = [
        Case(policy, mode, load, requests, device, host, chosen.seed, chosen.burst, chosen.link)
        for load, device, host, mode in pools
        for policy in dict.fromkeys(["fcfs", *policies])
        if host > 0
        or mode not in ("proactive", "blocking", "auto")  # without a host pool, the modes are the same
    ]
    rows = []
    with ProcessPoolExecutor(chosen.jobs) as pool:
        for row in pool.map(attempt, cases):
            print(json.dumps(row), flush=True)
            rows.append(row)
    report(rows)


def report(rows: list[dict[str, Any]]) -> None:
    """Print a table with one row per case, compared with fcfs; rows that miss a target are red."""
    table = Table()
    for name in (
        "load",
        "device",
        "host",
        "mode",
        "policy",
        "makespan",
        "/ fcfs",
        "recomputed",
        "JCT",
        "/ fcfs",
        "JCT/token",
        "TTFT",
        "pressure",
    ):
        table.add_column(name, justify="right")

    def pools(row: dict[str, Any]) -> tuple[Any, ...]:
        return Case(**{key: row[key] for key in Case.__dataclass_fields__}).pools

    fcfs = {pools(row): row for row in rows if row["policy"] == "fcfs"}
    missed = 0
    for row in rows:
        cells = [
            f"{row['load']:g}",
            str(row["device_blocks"]),
            f"{row['host_gib']:g}",
            row["mode"],
            row["policy"],
        ]
        if "error" in row:
            table.add_row(*cells, row["error"], style="red")
            missed += 1
            continue
        base = fcfs[pools(row)]
        makespan_ratio, jct_ratio = row["makespan"] / base["makespan"], row["jct"] / base["jct"]
        bad = (
            makespan_ratio > MAX_MAKESPAN
            or row["thrown_away"] > MAX_RECOMPUTED
            or row["finished"] < row["requests"]
        )
        missed += bad
        table.add_row(
            *cells,
            f"{row['makespan']:,.0f} s",
            f"{makespan_ratio:.3f}",
            f"{row['thrown_away']:.1%}",
            f"{row['jct']:,.1f} s",
            f"{jct_ratio:.2f}",
            f"{1000 * row['jct_per_token']:,.0f} ms",
            f"{row['ttft']:,.1f} s",
            f"{row['pressure_seconds'] / row['makespan']:.0%}",
            style="red" if bad else "",
        )
    console = Console(file=sys.stderr, width=160)
    console.print(table)
    console.print(f"{len(rows)} cases, {missed} of them miss a target")


if __name__ == "__main__":
    main()
