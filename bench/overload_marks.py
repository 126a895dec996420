"""Counts how often runs are marked as above capacity, for simulated loads of known capacity.

    python bench/overload_marks.py [--seeds 20] [--loads 0.8,1.5,200] [--policies fcfs,sj-mlfq] [--jobs 2]

The capacity is the rate at which ``MANY`` requests are answered that are all sent at once. A load is the
requested rate divided by the capacity. Each cell of the table shows the share of the seeds whose run is
judged to be above capacity. The share for which this is not known follows in parentheses, if it is not zero.

The aim: at most 2% above capacity at a load of 0.8, and at least 95% from 1.5 to 200.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fgbench.backends.simulated import Simulated
from fgbench.metrics.overload import Judgement, judge
from fgbench.metrics.record import RequestRecord
from fgbench.workload.build import build_workload
from fgbench.workload.datasets import Dataset, Synthetic
from fgbench.workload.lengths import Between
from fgbench.workload.reading import load_dataset
from fgengine.config import EngineConfig
from fgengine.profile import Profile

PROFILE = Path(__file__).parent.parent / "results/reference/overload/profile.json"
LOADS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 5.0, 10.0, 20.0, 50.0, 200.0)
MANY = 3000
"""Number of requests that measure the capacity."""


@dataclass(frozen=True)
class Case:
    """Runs of one load with several seeds."""

    lengths: str
    """A key of ``datasets``."""
    requests: int
    policy: str
    load: float
    seeds: int


CASES = (
    ("ShareGPT", 100),
    ("ShareGPT", 150),
    ("ShareGPT", 500),
    ("4000 to 10", 100),
    ("4000 to 10", 300),
    ("512 to 1", 100),
    ("512 to 1", 500),
)
"""Lengths and numbers of requests."""


def dataset(lengths: str) -> Dataset:
    """Return the dataset of a case."""
    if lengths == "ShareGPT":
        return load_dataset("sharegpt-lengths")
    prompt, output = (int(word) for word in lengths.split(" to "))
    return Synthetic(Between(prompt, prompt), Between(output, output))


def serve(lengths: str, policy: str, requests: int, rate: float, seed: int) -> Iterator[RequestRecord]:
    """Yield the records of one simulated load."""
    config = EngineConfig(policy=policy, max_queue=0, max_queue_tokens=0)
    workload = build_workload(
        dataset(lengths), rate=rate, num_prompts=requests, seed=seed, with_prompts=False
    )
    yield from Simulated(config, Profile.load(PROFILE)).replay(workload.requests, seed=seed)


@cache
def capacity(lengths: str, policy: str) -> float:
    """Return the requests per second that are answered if requests are always waiting."""
    ends = [record.finished or 0.0 for record in serve(lengths, policy, MANY, math.inf, 0)]
    return len(ends) / max(ends)


def judged(case: Case) -> dict[str, Any]:
    """Return the case's fields, and the shares of its seeds."""
    rate = case.load * capacity(case.lengths, case.policy)
    found: list[Judgement] = [
        judge(list(serve(case.lengths, case.policy, case.requests, rate, seed))) for seed in range(case.seeds)
    ]
    return asdict(case) | {
        "above": sum(one.overloaded is True for one in found) / len(found),
        "cannot_tell": sum(one.overloaded is None for one in found) / len(found),
        "shortfalls": [one.shortfall for one in found],
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Return the shares, one column per load."""
    loads = sorted({row["load"] for row in rows})
    shown = Table("lengths", "requests", "policy", *(f"{load:g}x" for load in loads))
    for lengths, requests, policy in dict.fromkeys((r["lengths"], r["requests"], r["policy"]) for r in rows):
        key = (lengths, requests, policy)
        of_key = {r["load"]: r for r in rows if (r["lengths"], r["requests"], r["policy"]) == key}
        shown.add_row(lengths, str(requests), policy, *(_cell(of_key[load]) for load in loads))
    return shown


def _cell(row: dict[str, Any]) -> str:
    unknown = f" ({row['cannot_tell']:.0%}?)" if row["cannot_tell"] else ""
    return f"{row['above']:.0%}{unknown}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="seeds of each load; five times as many at 0.8")
    parser.add_argument("--loads", default=",".join(f"{load:g}" for load in LOADS))
    parser.add_argument("--policies", default="fcfs,sj-mlfq")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    cases = [
        Case(lengths, requests, policy, load, options.seeds * (5 if load == 0.8 else 1))
        for (lengths, requests), policy, load in product(
            CASES, options.policies.split(","), map(float, options.loads.split(","))
        )
    ]
    rows = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for row in pool.map(judged, cases):
            rows.append(row)
            print(json.dumps(row), flush=True)
    Console(stderr=True, width=200).print(table(rows))
    worst_below = max((row["above"] for row in rows if row["load"] <= 0.8), default=0.0)
    worst_above = min((row["above"] for row in rows if row["load"] >= 1.5), default=1.0)
    print(f"most marks up to 0.8x: {worst_below:.0%}; fewest from 1.5x: {worst_above:.0%}", file=sys.stderr)


if __name__ == "__main__":
    main()
